using System.Buffers.Binary;
using Iced.Intel;
using VirtBench.Vmm.Boot;

namespace VirtBench.Workloads;

/// <summary>A gate of a workload's IDT.</summary>
/// <param name="Vector">Vector.</param>
/// <param name="Handler">The handler in system code.</param>
internal readonly record struct InterruptGate(byte Vector, Label Handler);

/// <summary>
/// Where workloads keep their handlers and tables: identity-mapped, between the image and what lies from 2 MiB up. Only
/// what a workload uses is loaded.
/// </summary>
internal static class SystemArea
{
    /// <summary>Handlers and routines.</summary>
    public const ulong Code = 0x18_0000;

    /// <summary>IDT, and behind its gates the operand of LIDT.</summary>
    public const ulong Idt = 0x19_0000;

    /// <summary>The operand of LIDT: limit and base.</summary>
    public const ulong IdtPointer = Idt + 0xFF0;

    /// <summary>Counters that handlers keep, and operands of instructions that need memory. One page.</summary>
    public const ulong Data = 0x19_1000;

    /// <summary>GDT, and from <see cref="GdtPointer"/> on the operand of LGDT.</summary>
    public const ulong Gdt = 0x19_2000;

    /// <summary>The operand of LGDT.</summary>
    public const ulong GdtPointer = Gdt + 0xFF0;

    /// <summary>64-bit TSS.</summary>
    public const ulong Tss = 0x19_3000;

    /// <summary>Top of the stack that an interrupt in ring 3 switches to: a page.</summary>
    public const ulong InterruptStackTop = 0x19_5000;

    /// <summary>Top of the stack of ring 3: a page.</summary>
    public const ulong UserStackTop = 0x19_6000;

    /// <summary>Highest vector that a gate may have: the table with all gates takes a page less the pointer.</summary>
    private const int MaximumVector = 0x7F;

    private const int GateBytes = 16;

    /// <summary>
    /// The IDT with these gates, all interrupt gates to ring 0 on the current stack (Intel SDM vol. 3A, figure 6-8), and the
    /// operand of LIDT.
    /// </summary>
    public static ImageSegment InterruptTable(IReadOnlyList<InterruptGate> gates, AssemblerResult code)
    {
        const ulong presentInterruptGate = 0x8E00;
        const ulong kernelCode = 0x08;
        byte[] table = new byte[0x1000];
        foreach (InterruptGate gate in gates)
        {
            ArgumentOutOfRangeException.ThrowIfGreaterThan(gate.Vector, MaximumVector, nameof(gates));
            ulong address = code.GetLabelRIP(gate.Handler);
            ulong low =
                (address & 0xFFFF)
                | (kernelCode << 16)
                | (presentInterruptGate << 32)
                | ((address & 0xFFFF_0000) << 32);
            Write(table, gate.Vector * GateBytes, low);
            Write(table, (gate.Vector * GateBytes) + 8, address >> 32);
        }

        int limit = ((gates.Max(gate => gate.Vector) + 1) * GateBytes) - 1;
        WritePointer(table.AsSpan((int)(IdtPointer - Idt)), Idt, (ushort)limit);
        return new ImageSegment(Idt, table, (ulong)table.Length, Executable: false);
    }

    /// <summary>The operand of LIDT or LGDT: 16 bits of limit, 64 of base.</summary>
    public static void WritePointer(Span<byte> at, ulong address, ushort limit)
    {
        BinaryPrimitives.WriteUInt16LittleEndian(at, limit);
        BinaryPrimitives.WriteUInt64LittleEndian(at[2..], address);
    }

    /// <summary>A page of zeros for counters and operands.</summary>
    public static ImageSegment EmptyData() => new(Data, Array.Empty<byte>(), 0x1000, Executable: false);

    /// <summary>Writes 8 bytes, little endian.</summary>
    public static void Write(Span<byte> bytes, int offset, ulong value) =>
        BinaryPrimitives.WriteUInt64LittleEndian(bytes[offset..], value);
}
