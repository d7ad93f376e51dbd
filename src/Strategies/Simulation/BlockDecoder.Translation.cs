using Iced.Intel;

namespace VirtBench.Strategies.Simulation;

/// <summary>What a modelled translator makes of sensitive instructions, and of those whose cost is not the CPU's alone.</summary>
internal sealed unsafe partial class BlockDecoder
{
    // STI that has just been emitted, and one whose shadow the instruction being emitted is in.
    private Op* _raising;
    private Op* _shadowing;

    private ushort CostOf(in Instruction i)
    {
        int cost = _costs[(int)i.Mnemonic];
        if (_mode == SimulatedMode.Translated)
        {
            switch (i.Mnemonic)
            {
                case Mnemonic.Mov when i.Op1Kind == OpKind.Register && i.Op1Register.IsSegmentRegister():
                    return _segmentMoveCost;
                case Mnemonic.Push when i.Op0Kind == OpKind.Register && i.Op0Register.IsSegmentRegister():
                    return _segmentPushCost;
                case Mnemonic.Ret:
                case Mnemonic.Jmp when i.IsJmpNearIndirect:
                case Mnemonic.Call when i.IsCallNearIndirect:
                    return (ushort)Math.Min(cost + _indirectCost, ushort.MaxValue);
            }
        }

        return (ushort)cost;
    }

    /// <summary>The instructions that a translator serves otherwise than ring 3 does; false for all others.</summary>
    private bool TryTranslated(Op* op, in Instruction i)
    {
        switch (i.Mnemonic)
        {
            case Mnemonic.Cli:
                _mayLeave = true;
                return Set(op, H(&TranslatedHandlers.Cli));
            case Mnemonic.Sti:
                _mayLeave = true;
                _raising = op;
                return Set(op, H(&TranslatedHandlers.Sti));
            case Mnemonic.Pushfq:
                _mayLeave = true;
                return Set(op, H(&TranslatedHandlers.Pushf<ulong>));
            case Mnemonic.Pushf:
                _mayLeave = true;
                return Set(op, H(&TranslatedHandlers.Pushf<ushort>));
            case Mnemonic.Popfq:
                _mayLeave = true;
                return Set(op, H(&TranslatedHandlers.Popf<ulong>));
            case Mnemonic.Popf:
                _mayLeave = true;
                return Set(op, H(&TranslatedHandlers.Popf<ushort>));
            case Mnemonic.Rdtsc:
                _mayLeave = true;
                return Set(op, H(&TranslatedHandlers.Rdtsc));
            case Mnemonic.Rdtscp:
                _mayLeave = true;
                return Set(op, H(&TranslatedHandlers.Rdtscp));
            case Mnemonic.Cpuid:
                return Set(op, H(&TranslatedHandlers.Cpuid));
            case Mnemonic.Lar or Mnemonic.Lsl or Mnemonic.Verr or Mnemonic.Verw:
                return EmitPrivileged(op, i);
            default:
                return false;
        }
    }

    /// <summary>
    /// The instruction behind an STI has been emitted: ends the shadow after it. Where that cannot be done, since it ends the block or
    /// may set the interrupt flag itself, an STI that begins a shadow calls out.
    /// </summary>
    private void EndShadow(in Instruction i)
    {
        Op* sti = _shadowing;
        _shadowing = null;
        if (_ended || i.Mnemonic is Mnemonic.Sti or Mnemonic.Popf or Mnemonic.Popfq)
        {
            sti->Handler = &TranslatedHandlers.StiAlone;
            return;
        }

        Op* op = Begin(i.NextIP, 0, 0);
        op->Handler = &TranslatedHandlers.EndShadow;
        _fusible = null;
        _silentCount = 0; // the guest may be left here
    }

    private void CallOutToRaise()
    {
        _raising->Handler = &TranslatedHandlers.StiAlone;
        _raising = null;
    }

    // The processor's ring 3 does not ask the guest's CR0 and CR4 whether SSE is there; a translator can.
    private void EmitSseGuard(in Instruction i)
    {
        bool image = i.Mnemonic is Mnemonic.Fxsave or Mnemonic.Fxsave64 or Mnemonic.Fxrstor or Mnemonic.Fxrstor64;
        if (!image && !TouchesSse(i))
        {
            return;
        }

        Op* op = Begin(i.IP, i.Length, 0);
        op->Handler = image ? &TranslatedHandlers.GuardFxsave : &TranslatedHandlers.GuardSse;
        _silentCount = 0;
    }

    private static bool TouchesSse(in Instruction i)
    {
        if (i.Mnemonic is Mnemonic.Ldmxcsr or Mnemonic.Stmxcsr)
        {
            return true;
        }

        for (int operand = 0; operand < i.OpCount; operand++)
        {
            if (i.GetOpKind(operand) == OpKind.Register && i.GetOpRegister(operand).IsXMM())
            {
                return true;
            }
        }

        return false;
    }
}
