using System.Buffers.Binary;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Memory;

namespace VirtBench.Workloads;

/// <summary>
/// What lies in memory when the kernel starts: its code, GDT, TSS and IDT, its page tables, the program. Layouts are those of
/// Intel SDM vol. 3A, chapters 3, 4, 6 and 8.
/// </summary>
internal static class MiniOsTables
{
    private const int PageSize = (int)GuestMemory.PageSize;
    private const int StateSize = 0x68;
    private const int InterruptStacks = 36; // of the TSS
    private const int PermissionMapBase = 0x66;

    /// <summary>Everything, in segments.</summary>
    public static ImageSegment[] Segments(MiniOsKernelImage kernel, byte[] program, byte[] constants)
    {
        Fits("the program", program.Length, (int)(MiniOsLayout.Constants - MiniOsLayout.Program));
        Fits("the constants", constants.Length, PageSize);
        Fits("the kernel's text", kernel.Text.Length, (int)(MiniOsLayout.Idt - MiniOsLayout.KernelText));
        byte[] tables = PageTables();
        return
        [
            new(MiniOsStatistics.Address, default, PageSize, Executable: false),
            new(MiniOsLayout.KernelCode, kernel.Code, (ulong)kernel.Code.Length, Executable: true),
            new(
                MiniOsLayout.Gdt,
                Descriptors(kernel),
                MiniOsLayout.KernelStackGuard - MiniOsLayout.Gdt,
                Executable: false
            ),
            new(MiniOsLayout.KernelTables, tables, (ulong)tables.Length, Executable: false),
            new(MiniOsLayout.ProgramImage, program, (ulong)program.Length, Executable: true),
            new(MiniOsLayout.ConstantsImage, constants, (ulong)constants.Length, Executable: false),
            new(MiniOsLayout.DiskDriver, default, DiskDriver.MemoryBytes + PageSize, Executable: false),
        ];
    }

    private static void Fits(string what, int length, int room)
    {
        if (length > room)
        {
            throw new ArgumentOutOfRangeException(
                what,
                $"mini-os: {what} has {length} bytes; there is room for {room}"
            );
        }
    }

    private static byte[] Descriptors(MiniOsKernelImage kernel)
    {
        byte[] bytes = new byte[(int)(MiniOsLayout.Variables - MiniOsLayout.Gdt)];

        // The Accessed bit is set in each, so that no load has to write it.
        Write(bytes, MiniOsLayout.Gdt + MiniOsLayout.KernelCodeSelector, 0x00AF_9B00_0000_FFFF);
        Write(bytes, MiniOsLayout.Gdt + MiniOsLayout.KernelDataSelector, 0x00CF_9300_0000_FFFF);
        Write(bytes, MiniOsLayout.Gdt + (MiniOsLayout.UserDataSelector & ~7UL), 0x00CF_F300_0000_FFFF);
        Write(bytes, MiniOsLayout.Gdt + (MiniOsLayout.UserCodeSelector & ~7UL), 0x00AF_FB00_0000_FFFF);
        const ulong availableState = 0x89UL << 40;
        Write(
            bytes,
            MiniOsLayout.Gdt + MiniOsLayout.TssSelector,
            (StateSize - 1) | ((MiniOsLayout.Tss & 0xFF_FFFF) << 16) | availableState
        );
        Write(
            bytes,
            MiniOsLayout.Tss + InterruptStacks + ((MiniOsLayout.FaultStackIndex - 1) * 8),
            MiniOsLayout.FaultStackTop
        );
        Write(bytes, MiniOsLayout.Tss + PermissionMapBase, StateSize, 2); // beyond the limit: no port is ring 3's

        WritePointer(bytes, MiniOsLayout.DescriptorPointers, MiniOsLayout.Gdt, MiniOsLayout.TssSelector + 16);
        WritePointer(bytes, MiniOsLayout.DescriptorPointers + 16, MiniOsLayout.Idt, MiniOsLayout.Gates * 16);
        kernel.Text.CopyTo(bytes, (int)(MiniOsLayout.KernelText - MiniOsLayout.Gdt));
        for (int vector = 0; vector < MiniOsLayout.Gates; vector++)
        {
            WriteGate(bytes, vector, kernel.Stubs[vector]);
        }

        return bytes;
    }

    private static void WriteGate(byte[] bytes, int vector, ulong handler)
    {
        const ulong interruptGate = 0x8EUL << 40; // present
        const ulong openToRing3 = 3UL << 45;
        ulong low =
            (handler & 0xFFFF)
            | ((ulong)MiniOsLayout.KernelCodeSelector << 16)
            | (vector == Vector.DoubleFault ? (ulong)MiniOsLayout.FaultStackIndex << 32 : 0)
            | interruptGate
            | (vector == Vector.Breakpoint ? openToRing3 : 0)
            | ((handler & 0xFFFF_0000) << 32);
        Write(bytes, MiniOsLayout.Idt + ((ulong)vector * 16), low);
        Write(bytes, MiniOsLayout.Idt + ((ulong)vector * 16) + 8, handler >> 32);
    }

    private static byte[] PageTables()
    {
        const ulong kernel = Pte.Present | Pte.Writable;
        const ulong largePage = 2UL << 20;
        byte[] bytes = new byte[MiniOsLayout.KernelTablePages * PageSize];
        void Entry(ulong table, ulong index, ulong value) =>
            BinaryPrimitives.WriteUInt64LittleEndian(
                bytes.AsSpan((int)(table - MiniOsLayout.KernelTables + (index * 8))),
                value
            );

        Entry(MiniOsLayout.KernelPml4, 0, MiniOsLayout.KernelPointers | kernel);
        Entry(MiniOsLayout.KernelPointers, 0, MiniOsLayout.KernelDirectory | kernel);
        for (ulong address = 0; address < MiniOsLayout.FramesEnd; address += largePage)
        {
            bool hasGuards = address == MiniOsLayout.Gdt;
            Entry(
                MiniOsLayout.KernelDirectory,
                address / largePage,
                hasGuards ? MiniOsLayout.KernelTable | kernel : address | kernel | Pte.Large
            );
        }

        for (ulong page = 0; page < 512; page++)
        {
            ulong address = MiniOsLayout.Gdt + (page * PageSize);
            bool isGuard = address is MiniOsLayout.KernelStackGuard or MiniOsLayout.FaultStackGuard;
            Entry(MiniOsLayout.KernelTable, page, isGuard ? 0 : address | kernel);
        }

        for (ulong page = 0; page < MiniOsLayout.ProgramPages; page++)
        {
            ulong noExecute = MiniOsLayout.Program + (page * PageSize) >= MiniOsLayout.Constants ? Pte.NoExecute : 0;
            Entry(
                MiniOsLayout.ProgramTable,
                page,
                (MiniOsLayout.ProgramImage + (page * PageSize)) | Pte.Present | Pte.User | noExecute
            );
        }

        return bytes;
    }

    private static void WritePointer(byte[] bytes, ulong address, ulong table, int size)
    {
        Write(bytes, address, (ulong)(size - 1), 2);
        Write(bytes, address + 2, table);
    }

    private static void Write(byte[] bytes, ulong address, ulong value, int size = 8)
    {
        Span<byte> quadword = stackalloc byte[8];
        BinaryPrimitives.WriteUInt64LittleEndian(quadword, value);
        quadword[..size].CopyTo(bytes.AsSpan((int)(address - MiniOsLayout.Gdt)));
    }
}
