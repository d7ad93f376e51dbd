using Iced.Intel;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Emulation;

// IN, OUT and their string forms (Intel SDM vol. 2; vol. 1, chapter 20). There is no I/O permission bitmap: above IOPL all
// ports are forbidden.
public sealed partial class InstructionEmulator
{
    /// <summary>
    /// Repetitions of a string instruction in one exit. The rest follows in further exits, so that a kick is never held up
    /// for longer than this takes.
    /// </summary>
    private const int RepetitionsPerExit = 4096;

    /// <summary>While single-stepping, the trap comes after every repetition.</summary>
    private int RepetitionLimit => (_cpu.Rflags & Rflags.Tf) != 0 ? 1 : RepetitionsPerExit;

    private EmulationResult In()
    {
        if (_cpu.Cpl > Iopl)
        {
            return Raise(Vector.GeneralProtection);
        }

        Register target = Instruction.Op0Register;
        uint value = _ports.Read(Port(Instruction, 1), target.GetSize(), _cpu.Rip);
        WriteRegister(target, value);
        return Done();
    }

    private EmulationResult Out()
    {
        if (_cpu.Cpl > Iopl)
        {
            return Raise(Vector.GeneralProtection);
        }

        Register source = Instruction.Op1Register;
        _ports.Write(Port(Instruction, 0), source.GetSize(), (uint)ReadRegister(source), _cpu.Rip);
        return Done();
    }

    private ushort Port(in Instruction instruction, int operand) =>
        instruction.GetOpKind(operand) == OpKind.Immediate8 ? instruction.Immediate8 : (ushort)_cpu[Gpr.Rdx];

    private EmulationResult Ins()
    {
        if (_cpu.Cpl > Iopl)
        {
            return Raise(Vector.GeneralProtection);
        }

        int size = Instruction.MemorySize.GetSize();
        ulong addressMask = StringAddressMask();
        ushort port = (ushort)_cpu[Gpr.Rdx];
        ulong left = Repetitions(addressMask, out bool repeats);
        int limit = RepetitionLimit;
        for (int done = RepetitionsDone; left > 0 && done < limit; done++)
        {
            ulong address = _cpu[Gpr.Rdi] & addressMask;
            int block = BlockOf(left, limit - done, size, address, repeats, PageAccess.Write);
            if (block > 1)
            {
                Span<byte> values = _string.AsSpan(0, block * size);
                _ports.ReadString(port, size, values, _cpu.Rip);
                if (!_space.TryWrite(address, values, User, out _event))
                {
                    return EmulationResult.Event;
                }

                left = EndBlock(Gpr.Rdi, block, size, addressMask);
                done += block - 1;
                continue;
            }

            // Before the device gives a value away, its place must be known to take it.
            if (!_space.TryProbe(address, size, PageAccess.Write | User, out _event))
            {
                return EmulationResult.Event;
            }

            uint value = _ports.Read(port, size, _cpu.Rip);
            if (!_space.TryWrite(address, Bytes(ref value, size), User, out _event))
            {
                return EmulationResult.Event;
            }

            Step(Gpr.Rdi, size, addressMask);
            left = EndRepetition(addressMask, repeats);
        }

        return left > 0 ? EmulationResult.Done : Done();
    }

    private EmulationResult Outs()
    {
        if (_cpu.Cpl > Iopl)
        {
            return Raise(Vector.GeneralProtection);
        }

        int size = Instruction.MemorySize.GetSize();
        ulong addressMask = StringAddressMask();
        ulong segmentBase = SegmentBase(Instruction.MemorySegment);
        ushort port = (ushort)_cpu[Gpr.Rdx];
        ulong left = Repetitions(addressMask, out bool repeats);
        int limit = RepetitionLimit;
        for (int done = RepetitionsDone; left > 0 && done < limit; done++)
        {
            uint value = 0;
            ulong address = segmentBase + (_cpu[Gpr.Rsi] & addressMask);
            int block = BlockOf(left, limit - done, size, address, repeats, PageAccess.Read);
            if (block > 1)
            {
                Span<byte> values = _string.AsSpan(0, block * size);
                if (!_space.TryRead(address, values, PageAccess.Read | User, out _event))
                {
                    return EmulationResult.Event;
                }

                _ports.WriteString(port, size, values, _cpu.Rip);
                left = EndBlock(Gpr.Rsi, block, size, addressMask);
                done += block - 1;
                continue;
            }

            if (!_space.TryRead(address, Bytes(ref value, size), PageAccess.Read | User, out _event))
            {
                CorrectStackFault(Instruction.MemorySegment);
                return EmulationResult.Event;
            }

            _ports.Write(port, size, value, _cpu.Rip);
            Step(Gpr.Rsi, size, addressMask);
            left = EndRepetition(addressMask, repeats);
        }

        return left > 0 ? EmulationResult.Done : Done();
    }

    /// <summary>
    /// How many repetitions can be done in one go: those upwards inside a page of RAM, whose translation holds for all of them as a TLB's would.
    /// 1 for one by itself. A transaction commits each repetition, and a guest that single-steps sees each.
    /// </summary>
    private int BlockOf(ulong left, int limit, int size, ulong address, bool repeats, PageAccess access)
    {
        if (!repeats || Transaction is not null || (_cpu.Rflags & Rflags.Df) != 0)
        {
            return 1;
        }

        ulong inPage = (GuestMemory.PageSize - (address & (GuestMemory.PageSize - 1))) / (ulong)size;
        int block = (int)Math.Min(Math.Min(left, inPage), (ulong)limit);
        return block > 1 && _space.ReachesRam(address, block * size, access | User) ? block : 1;
    }

    /// <summary>Ends so many repetitions, and returns how many are left.</summary>
    private ulong EndBlock(int index, int block, int size, ulong addressMask)
    {
        _cpu[index] = (_cpu[index] + (ulong)(block * size)) & addressMask;
        _cpu[Gpr.Rcx] = (_cpu[Gpr.Rcx] - (ulong)block) & addressMask;
        return _cpu[Gpr.Rcx];
    }

    private readonly byte[] _string = new byte[GuestMemory.PageSize];

    /// <summary>How many repetitions are left: RCX (ECX) with a repeat prefix of either kind, else one.</summary>
    private ulong Repetitions(ulong addressMask, out bool repeats)
    {
        repeats = Instruction.HasRepPrefix || Instruction.HasRepnePrefix;
        return repeats ? _cpu[Gpr.Rcx] & addressMask : 1;
    }

    /// <summary>One repetition's step of an index register.</summary>
    private void Step(int index, int size, ulong addressMask)
    {
        ulong step = (_cpu.Rflags & Rflags.Df) != 0 ? (ulong)-size : (ulong)size;
        _cpu[index] = (_cpu[index] + step) & addressMask;
    }

    /// <summary>Ends one repetition, which nothing undoes from now on, and returns how many are left.</summary>
    private ulong EndRepetition(ulong addressMask, bool repeats)
    {
        if (!repeats)
        {
            return 0;
        }

        _cpu[Gpr.Rcx] = (_cpu[Gpr.Rcx] - 1) & addressMask;
        Transaction?.CommitRepetition();
        return _cpu[Gpr.Rcx];
    }

    private static unsafe Span<byte> Bytes(ref uint value, int size) =>
        new(System.Runtime.CompilerServices.Unsafe.AsPointer(ref value), size);
}
