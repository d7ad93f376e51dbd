using System.Buffers.Binary;
using Iced.Intel;
using VirtBench.Strategies.Native;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Strategies.Carrier;

/// <summary>
/// The ELF file that a carrier is started from: it maps the monitor window out of the control memfd and jumps into the
/// stub, which then unmaps everything else. It uses no stack and knows no library.
/// </summary>
internal static class BootProgram
{
    private const int HeaderSize = 64 + (2 * 56);

    /// <summary>Exit status when a mapping failed.</summary>
    public const int MapFailedStatus = 99;

    /// <summary>Exit status when the VMM was gone before the carrier could ask to die with it.</summary>
    public const int OrphanedStatus = 97;

    /// <summary>Builds the file.</summary>
    /// <param name="parent">Process id of the VMM.</param>
    /// <param name="slot">Which of the vCPU's control areas is the carrier's.</param>
    /// <param name="codeCacheSize">Bytes of its code cache; 0 for none.</param>
    public static byte[] Build(int parent, int slot, int codeCacheSize)
    {
        byte[] code = MachineCode.Assemble(Assemble(parent, slot, codeCacheSize), CarrierLayout.BootBase + HeaderSize);
        byte[] file = new byte[HeaderSize + code.Length];
        WriteHeaders(file);
        code.CopyTo(file, HeaderSize);
        return file;
    }

    private static Assembler Assemble(int parent, int slot, int codeCacheSize)
    {
        var a = new Assembler(64);
        Label failed = a.CreateLabel();
        Label orphaned = a.CreateLabel();

        // Ask to die with the VMM first; had it died before this, the parent is another one now.
        SystemCall(a, Linux.SysPrctl, Linux.PrSetPdeathsig, Linux.SigKill);
        SystemCall(a, Linux.SysGetppid);
        a.cmp(eax, parent);
        a.jne(orphaned);

        Map(CarrierLayout.Stub, CarrierLayout.StubSize, Linux.ProtRead | Linux.ProtExec, CarrierLayout.StubFileOffset);
        Map(
            CarrierLayout.Control,
            CarrierLayout.ControlSize,
            Linux.ProtRead | Linux.ProtWrite,
            CarrierLayout.ControlFileOffset + (slot * (long)CarrierLayout.ControlSize)
        );
        Map(
            CarrierLayout.RegisterFile,
            CarrierLayout.RegisterFileSize,
            Linux.ProtRead | Linux.ProtWrite,
            CarrierLayout.RegisterFileFileOffset
        );
        SystemCall(
            a,
            Linux.SysMmap,
            CarrierLayout.RegisterFile + CarrierLayout.SignalStackOffset,
            CarrierLayout.OwnStackEnd - CarrierLayout.SignalStackOffset,
            Linux.ProtRead | Linux.ProtWrite,
            Linux.MapPrivate | Linux.MapAnonymousFlag | Linux.MapFixed,
            ulong.MaxValue,
            0
        );
        a.test(rax, rax);
        a.js(failed);
        Map(
            CarrierLayout.Peers,
            CarrierLayout.WindowEnd - CarrierLayout.Peers,
            Linux.ProtRead,
            CarrierLayout.ControlFileOffset
        );
        if (codeCacheSize != 0)
        {
            long offset = CarrierLayout.TranslationFileOffset(slot, codeCacheSize);
            Map(CarrierLayout.LookupTable, CarrierLayout.LookupTableSize, Linux.ProtRead, offset);
            Map(
                CarrierLayout.CodeCache,
                (ulong)codeCacheSize,
                Linux.ProtRead | Linux.ProtExec,
                offset + (long)CarrierLayout.LookupTableSize
            );
        }

        a.mov(rax, CarrierLayout.Stub);
        a.jmp(rax);

        a.Label(ref failed);
        SystemCall(a, Linux.SysExitGroup, MapFailedStatus);
        a.Label(ref orphaned);
        SystemCall(a, Linux.SysExitGroup, OrphanedStatus);
        return a;

        void Map(ulong address, ulong length, int protection, long offset)
        {
            SystemCall(
                a,
                Linux.SysMmap,
                address,
                length,
                (ulong)protection,
                Linux.MapShared | Linux.MapFixed,
                CarrierLayout.ControlFd,
                (ulong)offset
            );
            a.test(rax, rax);
            a.js(failed);
        }
    }

    // Clobbers the argument registers, RAX, RCX and R11; nothing lives in them here.
    private static void SystemCall(Assembler a, int number, params ReadOnlySpan<ulong> arguments)
    {
        AssemblerRegister64[] registers = [rdi, rsi, rdx, r10, r8, r9];
        for (int i = 0; i < arguments.Length; i++)
        {
            a.mov(registers[i], arguments[i]);
        }

        a.mov(eax, number);
        a.syscall();
    }

    // ELF-64 object file format: one R-X PT_LOAD of the whole file and a PT_GNU_STACK that asks for no executable stack.
    private static void WriteHeaders(Span<byte> file)
    {
        ReadOnlySpan<byte> identification = [0x7F, (byte)'E', (byte)'L', (byte)'F', 2, 1, 1];
        identification.CopyTo(file);
        BinaryPrimitives.WriteUInt16LittleEndian(file[16..], 2); // ET_EXEC
        BinaryPrimitives.WriteUInt16LittleEndian(file[18..], 62); // EM_X86_64
        BinaryPrimitives.WriteUInt32LittleEndian(file[20..], 1); // EV_CURRENT
        BinaryPrimitives.WriteUInt64LittleEndian(file[24..], CarrierLayout.BootBase + HeaderSize); // e_entry
        BinaryPrimitives.WriteUInt64LittleEndian(file[32..], 64); // e_phoff
        BinaryPrimitives.WriteUInt16LittleEndian(file[52..], 64); // e_ehsize
        BinaryPrimitives.WriteUInt16LittleEndian(file[54..], 56); // e_phentsize
        BinaryPrimitives.WriteUInt16LittleEndian(file[56..], 2); // e_phnum

        Span<byte> load = file[64..];
        BinaryPrimitives.WriteUInt32LittleEndian(load, 1); // PT_LOAD
        BinaryPrimitives.WriteUInt32LittleEndian(load[4..], 5); // R+X
        BinaryPrimitives.WriteUInt64LittleEndian(load[16..], CarrierLayout.BootBase);
        BinaryPrimitives.WriteUInt64LittleEndian(load[24..], CarrierLayout.BootBase);
        BinaryPrimitives.WriteUInt64LittleEndian(load[32..], (ulong)file.Length);
        BinaryPrimitives.WriteUInt64LittleEndian(load[40..], (ulong)file.Length);
        BinaryPrimitives.WriteUInt64LittleEndian(load[48..], 0x1000);

        Span<byte> stack = load[56..];
        BinaryPrimitives.WriteUInt32LittleEndian(stack, 0x6474_E551); // PT_GNU_STACK
        BinaryPrimitives.WriteUInt32LittleEndian(stack[4..], 6); // R+W
        BinaryPrimitives.WriteUInt64LittleEndian(stack[48..], 16);
    }
}
