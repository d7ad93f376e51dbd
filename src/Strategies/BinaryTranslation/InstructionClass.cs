using Iced.Intel;
using VirtBench.Vmm.Emulation;

namespace VirtBench.Strategies.BinaryTranslation;

/// <summary>What translation does with an instruction. Those from <see cref="Jump"/> on end a block.</summary>
internal enum InstructionClass : byte
{
    /// <summary>Not looked at yet.</summary>
    Unknown,

    /// <summary>Copied; a RIP-relative operand is made absolute.</summary>
    Copy,

    /// <summary>CLI.</summary>
    Cli,

    /// <summary>STI.</summary>
    Sti,

    /// <summary>PUSHFQ.</summary>
    Pushf,

    /// <summary>POPFQ.</summary>
    Popf,

    /// <summary>RDTSC.</summary>
    Rdtsc,

    /// <summary>RDTSCP.</summary>
    Rdtscp,

    /// <summary>CPUID.</summary>
    Cpuid,

    /// <summary>SGDT, SIDT.</summary>
    StoreTable,

    /// <summary>SLDT, STR, SMSW, MOV from a segment register.</summary>
    StoreWord,

    /// <summary>MOV from CR0, CR2, CR3 or CR4.</summary>
    ReadControl,

    /// <summary>JMP to a constant address at which the block goes on.</summary>
    Followed,

    /// <summary>Jcc.</summary>
    ConditionalJump,

    /// <summary>LOOPcc, JRCXZ.</summary>
    CountedJump,

    /// <summary>JMP to a constant address.</summary>
    Jump,

    /// <summary>CALL of a constant address.</summary>
    Call,

    /// <summary>JMP through a register or memory.</summary>
    IndirectJump,

    /// <summary>CALL through a register or memory.</summary>
    IndirectCall,

    /// <summary>Near RET.</summary>
    Return,

    /// <summary>Copied, and never executed to its end: UD2.</summary>
    Fault,

    /// <summary>The core emulates it.</summary>
    Emulate,

    /// <summary>No instruction.</summary>
    Undefined,
}

/// <summary>From instructions to classes.</summary>
internal sealed class InstructionClasses
{
    // Code has some 4,900 values in Iced 1.22.
    private const int CodeLimit = 1 << 13;

    private readonly InstructionClass[] _known = new InstructionClass[CodeLimit];

    /// <summary>The class of an instruction, which its code decides.</summary>
    public InstructionClass this[in Instruction instruction]
    {
        get
        {
            ref InstructionClass known = ref _known[(int)instruction.Code];
            if (known == InstructionClass.Unknown)
            {
                known = Classify(instruction);
            }

            return known;
        }
    }

    private static InstructionClass Classify(in Instruction instruction)
    {
        switch (instruction.Code)
        {
            case Code.INVALID:
                return InstructionClass.Undefined;
            case Code.Jmp_rel8_64 or Code.Jmp_rel32_64:
                return InstructionClass.Jump;
            case Code.Jmp_rm64:
                return InstructionClass.IndirectJump;
            case Code.Call_rel32_64:
                return InstructionClass.Call;
            case Code.Call_rm64:
                return InstructionClass.IndirectCall;
            case Code.Retnq or Code.Retnq_imm16:
                return InstructionClass.Return;
            case Code.Cli:
                return InstructionClass.Cli;
            case Code.Sti:
                return InstructionClass.Sti;
            case Code.Pushfq:
                return InstructionClass.Pushf;
            case Code.Popfq:
                return InstructionClass.Popf;
            case Code.Rdtsc:
                return InstructionClass.Rdtsc;
            case Code.Rdtscp:
                return InstructionClass.Rdtscp;
            case Code.Cpuid:
                return InstructionClass.Cpuid;
            case Code.Sgdt_m1664 or Code.Sidt_m1664:
                return InstructionClass.StoreTable;
            case Code.Mov_r64_cr:
                // CR8 is the core's, and the others are decided by the operand.
                return InstructionClass.ReadControl;
        }

        return instruction.Mnemonic switch
        {
            Mnemonic.Sldt or Mnemonic.Str or Mnemonic.Smsw => InstructionClass.StoreWord,
            Mnemonic.Mov when instruction.Op1Register.IsSegmentRegister() => InstructionClass.StoreWord,
            Mnemonic.Ud0 or Mnemonic.Ud1 or Mnemonic.Ud2 => InstructionClass.Fault,
            _ => instruction.FlowControl switch
            {
                FlowControl.ConditionalBranch when instruction.IsJccShortOrNear => InstructionClass.ConditionalJump,
                FlowControl.ConditionalBranch => InstructionClass.CountedJump,
                FlowControl.Next when !InstructionEmulator.MustEmulate(instruction) => InstructionClass.Copy,
                _ => InstructionClass.Emulate,
            },
        };
    }
}
