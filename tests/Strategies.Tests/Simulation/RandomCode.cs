using Iced.Intel;

namespace VirtBench.Strategies.Tests.Simulation;

/// <summary>
/// Seeded random x86-64-v1 code: every form that Iced knows of the instructions asked for, with random registers,
/// immediates and addresses in a scratch area. R15 points at the middle of the area, R14 is a small index, RSP a stack in
/// it; none of the three is ever a destination.
/// </summary>
internal sealed class RandomCode
{
    public const int ScratchSize = 8192;

    private const RflagsBits Arithmetic =
        RflagsBits.CF | RflagsBits.PF | RflagsBits.AF | RflagsBits.ZF | RflagsBits.SF | RflagsBits.OF;

    // What other tests cover: exits, control transfers, sensitive and privileged instructions, instructions that depend on
    // where they run, and those the simulated CPU does not have.
    private static readonly HashSet<Mnemonic> Excluded =
    [
        Mnemonic.Call,
        Mnemonic.Jmp,
        Mnemonic.Ret,
        Mnemonic.Retf,
        Mnemonic.Loop,
        Mnemonic.Loope,
        Mnemonic.Loopne,
        Mnemonic.Jrcxz,
        Mnemonic.Jecxz,
        Mnemonic.Int,
        Mnemonic.Int1,
        Mnemonic.Int3,
        Mnemonic.Into,
        Mnemonic.Iret,
        Mnemonic.Iretd,
        Mnemonic.Iretq,
        Mnemonic.In,
        Mnemonic.Out,
        Mnemonic.Insb,
        Mnemonic.Insw,
        Mnemonic.Insd,
        Mnemonic.Outsb,
        Mnemonic.Outsw,
        Mnemonic.Outsd,
        Mnemonic.Cpuid,
        Mnemonic.Rdtsc,
        Mnemonic.Rdtscp,
        Mnemonic.Syscall,
        Mnemonic.Sysret,
        Mnemonic.Sysretq,
        Mnemonic.Sysenter,
        Mnemonic.Sysexit,
        Mnemonic.Sysexitq,
        Mnemonic.Sgdt,
        Mnemonic.Sidt,
        Mnemonic.Sldt,
        Mnemonic.Str,
        Mnemonic.Smsw,
        Mnemonic.Lmsw,
        Mnemonic.Lgdt,
        Mnemonic.Lidt,
        Mnemonic.Lldt,
        Mnemonic.Ltr,
        Mnemonic.Lar,
        Mnemonic.Lsl,
        Mnemonic.Verr,
        Mnemonic.Verw,
        Mnemonic.Hlt,
        Mnemonic.Cli,
        Mnemonic.Sti,
        Mnemonic.Clts,
        Mnemonic.Ud0,
        Mnemonic.Ud1,
        Mnemonic.Ud2,
        Mnemonic.Rdmsr,
        Mnemonic.Wrmsr,
        Mnemonic.Rdpmc,
        Mnemonic.Invd,
        Mnemonic.Wbinvd,
        Mnemonic.Invlpg,
        Mnemonic.Swapgs,
        Mnemonic.Enter,
        Mnemonic.Leave,
        Mnemonic.Lss,
        Mnemonic.Lfs,
        Mnemonic.Lgs,
        Mnemonic.Rsm,
        Mnemonic.Popf,
        Mnemonic.Popfq,
        Mnemonic.Pushf,
        Mnemonic.Pushfq,
        Mnemonic.Fxsave,
        Mnemonic.Fxsave64,
        Mnemonic.Fxrstor,
        Mnemonic.Fxrstor64,
        Mnemonic.Ldmxcsr,
        Mnemonic.Stmxcsr,
        Mnemonic.Wait,
        Mnemonic.Std,
        Mnemonic.Maskmovdqu,
        Mnemonic.Xlatb,
        Mnemonic.Loadall,
        Mnemonic.Reservednop,
        Mnemonic.Clflush,
        // approximations: any result within the documented error is right
        Mnemonic.Rcpps,
        Mnemonic.Rcpss,
        Mnemonic.Rsqrtps,
        Mnemonic.Rsqrtss,
    ];

    // The oracle raises #UD for the second encoding of TEST, which every processor has; a 16-bit BSWAP is undefined.
    private static readonly HashSet<Code> Undocumented =
    [
        Code.Test_rm8_imm8_F6r1,
        Code.Test_rm16_imm16_F7r1,
        Code.Test_rm32_imm32_F7r1,
        Code.Test_rm64_imm32_F7r1,
        Code.Bswap_r16,
    ];

    private readonly Random _random;
    private readonly Code[] _codes;
    private readonly ulong _rip;
    private readonly List<Instruction> _instructions = [];
    private readonly List<RflagsBits> _undefinedAfter = [];
    private RflagsBits _undefined;

    public RandomCode(int seed, ulong rip, Func<OpCodeInfo, bool> wanted)
    {
        _random = new Random(seed);
        _rip = rip;
        _codes = [.. Enum.GetValues<Code>().Where(code => IsCandidate(code) && wanted(code.ToOpCode()))];
    }

    /// <summary>Forms that can come up.</summary>
    public IReadOnlyList<Code> Codes => _codes;

    private static bool IsCandidate(Code code)
    {
        OpCodeInfo info = code.ToOpCode();
        if (
            !info.IsInstruction
            || info.Encoding != EncodingKind.Legacy
            || !info.Mode64
            || info.IsPrivileged
            || info.AddressSize == 16
            || Excluded.Contains(code.Mnemonic())
            || Undocumented.Contains(code)
        )
        {
            return false;
        }

        for (int i = 0; i < info.OpCount; i++)
        {
            if (
                info.GetOpKind(i)
                is OpCodeOperandKind.mm_reg
                    or OpCodeOperandKind.mm_or_mem
                    or OpCodeOperandKind.mm_rm
                    or OpCodeOperandKind.seg_reg
                    or OpCodeOperandKind.fs
                    or OpCodeOperandKind.gs
                    or OpCodeOperandKind.br64_1
                    or OpCodeOperandKind.br16_1
                    or OpCodeOperandKind.br32_1
                    or OpCodeOperandKind.br64_4
                    or OpCodeOperandKind.br16_2
                    or OpCodeOperandKind.br32_4
                    or OpCodeOperandKind.cr_reg
                    or OpCodeOperandKind.dr_reg
                    or OpCodeOperandKind.sti_opcode
                    or OpCodeOperandKind.st0
            )
            {
                return false;
            }
        }

        foreach (CpuidFeature feature in code.CpuidFeatures())
        {
            if (
                feature
                is not (
                    CpuidFeature.INTEL8086
                    or CpuidFeature.INTEL8086_ONLY
                    or CpuidFeature.INTEL186
                    or CpuidFeature.INTEL286
                    or CpuidFeature.INTEL386
                    or CpuidFeature.INTEL486
                    or CpuidFeature.X64
                    or CpuidFeature.CMOV
                    or CpuidFeature.CX8
                    or CpuidFeature.CMPXCHG16B
                    or CpuidFeature.MULTIBYTENOP
                    or CpuidFeature.PREFETCHW
                    or CpuidFeature.SSE
                    or CpuidFeature.SSE2
                    or CpuidFeature.CLFSH
                )
            )
            {
                return false;
            }
        }

        return code.CpuidFeatures()[0] != CpuidFeature.PREFETCHW;
    }

    /// <summary>A program of about this many instructions, and the flags that are undefined at its end.</summary>
    public byte[] Next(int count, out RflagsBits undefined)
    {
        _instructions.Clear();
        _undefinedAfter.Clear();
        _undefined = RflagsBits.None;
        while (_instructions.Count < count)
        {
            Append(_codes[_random.Next(_codes.Length)]);
        }

        undefined = _undefined;
        return Encode(_instructions.Count);
    }

    public int Count => _instructions.Count;

    /// <summary>The first instructions of the last program.</summary>
    public byte[] Encode(int count)
    {
        var stream = new MemoryStream();
        var encoder = Encoder.Create(64, new StreamCodeWriter(stream));
        foreach (Instruction instruction in _instructions.Take(count))
        {
            encoder.Encode(instruction, _rip + (ulong)stream.Position);
        }

        return stream.ToArray();
    }

    /// <summary>Flags that are undefined after so many instructions.</summary>
    public RflagsBits UndefinedAfter(int count) => _undefinedAfter[count - 1];

    public Instruction this[int index] => _instructions[index];

    public void Append(Code code)
    {
        Instruction instruction = Random(code);
        if (!CanEncode(instruction))
        {
            return; // high-byte register with REX
        }

        if (code == Code.Cmpxchg_rm32_r32 && instruction.Op0Kind == OpKind.Register)
        {
            return; // Unicorn 2.0.1 clears the upper half of a destination that is not written
        }

        Prepare(instruction);
        RflagsBits read = instruction.RflagsRead & Arithmetic;
        if ((read & _undefined) != 0)
        {
            Add(Instruction.Create(Code.Cmp_rm32_r32, AnyGpr(4), AnyGpr(4)));
        }

        Add(instruction);
    }

    private bool CanEncode(in Instruction instruction)
    {
        var encoder = Encoder.Create(64, new StreamCodeWriter(new MemoryStream()));
        return encoder.TryEncode(instruction, _rip, out _, out _);
    }

    private void Add(in Instruction instruction)
    {
        _instructions.Add(instruction);
        RflagsBits undefined = instruction.RflagsUndefined & Arithmetic;
        switch (instruction.Mnemonic)
        {
            case Mnemonic.Shl
            or Mnemonic.Sal
            or Mnemonic.Shr
            or Mnemonic.Sar
            or Mnemonic.Shld
            or Mnemonic.Shrd
            or Mnemonic.Rol
            or Mnemonic.Ror
            or Mnemonic.Rcl
            or Mnemonic.Rcr:
                // A count of 0 leaves the flags; OF is defined for 1 only; CF not beyond the operand's width.
                _undefined |= undefined | RflagsBits.OF;
                if (instruction.Mnemonic is not (Mnemonic.Rol or Mnemonic.Ror or Mnemonic.Rcl or Mnemonic.Rcr))
                {
                    _undefined |= RflagsBits.AF | RflagsBits.CF;
                }

                if (instruction.Mnemonic is Mnemonic.Shld or Mnemonic.Shrd)
                {
                    _undefined |= Arithmetic;
                }

                break;
            case Mnemonic.Cmpxchg8b or Mnemonic.Cmpxchg16b:
                // They change ZF only, but Unicorn 2.0.1 loses the others.
                _undefined = Arithmetic & ~RflagsBits.ZF;
                break;
            case Mnemonic.Bsf or Mnemonic.Bsr:
                _undefined = (_undefined | Arithmetic) & ~RflagsBits.ZF;
                break;
            default:
                bool repeated = instruction.HasRepPrefix || instruction.HasRepnePrefix;
                RflagsBits defined =
                    (instruction.RflagsModified & Arithmetic & ~undefined) | (repeated ? RflagsBits.None : 0);
                _undefined = (_undefined & ~(repeated ? RflagsBits.None : defined)) | undefined;
                break;
        }

        _undefinedAfter.Add(_undefined);
    }

    /// <summary>Puts operands into range: divisors, string pointers, bit offsets, aligned addresses.</summary>
    private void Prepare(in Instruction i)
    {
        switch (i.Mnemonic)
        {
            case Mnemonic.Div or Mnemonic.Idiv when _random.Next(4) != 0:
                // mostly quotients that fit: the dividend's upper half is small
                Add(Instruction.Create(Code.Mov_r32_imm32, Register.EDX, (uint)_random.Next(3)));
                Add(Instruction.Create(Code.Movzx_r32_rm8, Register.EAX, Register.AL));
                Add(Instruction.Create(Code.Cmp_rm32_r32, Register.EAX, Register.EDX));
                break;
            case Mnemonic.Movsb
            or Mnemonic.Movsw
            or Mnemonic.Movsd
            or Mnemonic.Movsq
            or Mnemonic.Stosb
            or Mnemonic.Stosw
            or Mnemonic.Stosd
            or Mnemonic.Stosq
            or Mnemonic.Lodsb
            or Mnemonic.Lodsw
            or Mnemonic.Lodsd
            or Mnemonic.Lodsq
            or Mnemonic.Scasb
            or Mnemonic.Scasw
            or Mnemonic.Scasd
            or Mnemonic.Scasq
            or Mnemonic.Cmpsb
            or Mnemonic.Cmpsw
            or Mnemonic.Cmpsd
            or Mnemonic.Cmpsq when i.IsStringInstruction:
                Add(Instruction.Create(Code.Lea_r64_m, Register.RSI, Scratch()));
                Add(Instruction.Create(Code.Lea_r64_m, Register.RDI, Scratch()));
                Add(Instruction.Create(Code.Mov_r32_imm32, Register.ECX, (uint)_random.Next(20)));
                break;
            case Mnemonic.Bsf or Mnemonic.Bsr when i.Code is Code.Bsf_r32_rm32 or Code.Bsr_r32_rm32:
                // A source of 0 leaves the whole register; Unicorn clears its upper half.
                Instruction nonzero = i;
                nonzero.Code = Code.Bts_rm32_imm8;
                nonzero.Op0Kind = i.Op1Kind;
                nonzero.Op0Register = i.Op1Register;
                nonzero.Op1Register = Register.None;
                nonzero.Op1Kind = OpKind.Immediate8;
                nonzero.Immediate8 = (byte)_random.Next(32);
                Add(nonzero);
                break;
            case Mnemonic.Bt
            or Mnemonic.Bts
            or Mnemonic.Btr
            or Mnemonic.Btc when i.Op0Kind == OpKind.Memory && i.Op1Kind == OpKind.Register:
                // a signed offset of up to 4096 bits
                Register offset = i.Op1Register.GetFullRegister();
                Add(Instruction.Create(Code.Mov_rm64_imm32, offset, _random.Next(-4096, 4096)));
                break;
        }
    }

    private MemoryOperand Scratch() => new(Register.R15, _random.Next(-2000, 2000), 8);

    private Register AnyGpr(int size)
    {
        // R14, R15 and RSP are never destinations; as sources they add nothing
        int n;
        do
        {
            n = _random.Next(14);
        } while (n == 4);

        return size switch
        {
            1 => Any8(),
            2 => Register.AX + n,
            4 => Register.EAX + n,
            _ => Register.RAX + n,
        };
    }

    private Register Any8()
    {
        // AL … BL, AH … BH, then SPL … R15L
        Register r;
        do
        {
            r = Register.AL + _random.Next(20);
        } while (r is Register.SPL or Register.R14L or Register.R15L);

        return r;
    }

    private Instruction Random(Code code)
    {
        OpCodeInfo info = code.ToOpCode();
        Instruction i = default;
        i.Code = code;
        // Unicorn 2.0.1 gets the flags of LOCK NEG wrong.
        bool lockable = info.CanUseLockPrefix && i.Mnemonic != Mnemonic.Neg && _random.Next(4) == 0;
        for (int n = 0; n < info.OpCount; n++)
        {
            SetOperand(ref i, n, info.GetOpKind(n), info, lockable);
        }

        if (lockable && i.Op0Kind == OpKind.Memory)
        {
            i.HasLockPrefix = true;
        }

        if (info.CanUseRepPrefix && i.IsStringInstruction && _random.Next(2) == 0)
        {
            i.HasRepPrefix = true;
        }
        else if (info.CanUseRepnePrefix && i.IsStringInstruction && _random.Next(3) == 0)
        {
            i.HasRepnePrefix = true;
        }

        return i;
    }

    private void SetOperand(ref Instruction i, int n, OpCodeOperandKind kind, OpCodeInfo info, bool preferMemory)
    {
        bool memory = preferMemory || _random.Next(3) == 0;
        switch (kind)
        {
            case OpCodeOperandKind.mem:
            case OpCodeOperandKind.mem_mib:
                SetMemory(ref i, n, info);
                break;
            case OpCodeOperandKind.mem_offs:
                i.SetOpKind(n, OpKind.Memory);
                i.MemoryDisplSize = 8;
                i.MemoryDisplacement64 = SimulatedGuest.DataStart + (ulong)_random.Next(16, 8000);
                break;
            case OpCodeOperandKind.r8_or_mem when memory:
            case OpCodeOperandKind.r16_or_mem when memory:
            case OpCodeOperandKind.r32_or_mem when memory:
            case OpCodeOperandKind.r64_or_mem when memory:
            case OpCodeOperandKind.xmm_or_mem when memory:
                SetMemory(ref i, n, info);
                break;
            case OpCodeOperandKind.r8_or_mem:
            case OpCodeOperandKind.r8_reg:
            case OpCodeOperandKind.r8_opcode:
                i.SetOpRegister(n, AnyGpr(1));
                break;
            case OpCodeOperandKind.r16_or_mem:
            case OpCodeOperandKind.r16_reg:
            case OpCodeOperandKind.r16_rm:
            case OpCodeOperandKind.r16_opcode:
                i.SetOpRegister(n, AnyGpr(2));
                break;
            case OpCodeOperandKind.r32_or_mem:
            case OpCodeOperandKind.r32_reg:
            case OpCodeOperandKind.r32_rm:
            case OpCodeOperandKind.r32_opcode:
                i.SetOpRegister(n, AnyGpr(4));
                break;
            case OpCodeOperandKind.r64_or_mem:
            case OpCodeOperandKind.r64_reg:
            case OpCodeOperandKind.r64_rm:
            case OpCodeOperandKind.r64_opcode:
                i.SetOpRegister(n, AnyGpr(8));
                break;
            case OpCodeOperandKind.xmm_or_mem:
            case OpCodeOperandKind.xmm_reg:
            case OpCodeOperandKind.xmm_rm:
                i.SetOpRegister(n, Register.XMM0 + _random.Next(16));
                break;
            case OpCodeOperandKind.al:
                i.SetOpRegister(n, Register.AL);
                break;
            case OpCodeOperandKind.cl:
                i.SetOpRegister(n, Register.CL);
                break;
            case OpCodeOperandKind.ax:
                i.SetOpRegister(n, Register.AX);
                break;
            case OpCodeOperandKind.eax:
                i.SetOpRegister(n, Register.EAX);
                break;
            case OpCodeOperandKind.rax:
                i.SetOpRegister(n, Register.RAX);
                break;
            case OpCodeOperandKind.imm8_const_1:
                i.SetOpKind(n, OpKind.Immediate8);
                i.Immediate8 = 1;
                break;
            case OpCodeOperandKind.imm8:
                i.SetOpKind(n, OpKind.Immediate8);
                // Predicates above 7 are reserved without VEX: processors ignore the upper bits, the oracle raises #UD.
                i.Immediate8 = (byte)_random.Next(IsSseCompare(i.Mnemonic) ? 8 : 256);
                break;
            case OpCodeOperandKind.imm8sex16:
                i.SetOpKind(n, OpKind.Immediate8to16);
                i.Immediate8to16 = (short)(sbyte)_random.Next(256);
                break;
            case OpCodeOperandKind.imm8sex32:
                i.SetOpKind(n, OpKind.Immediate8to32);
                i.Immediate8to32 = (sbyte)_random.Next(256);
                break;
            case OpCodeOperandKind.imm8sex64:
                i.SetOpKind(n, OpKind.Immediate8to64);
                i.Immediate8to64 = (sbyte)_random.Next(256);
                break;
            case OpCodeOperandKind.imm16:
                i.SetOpKind(n, OpKind.Immediate16);
                i.Immediate16 = (ushort)_random.Next(65536);
                break;
            case OpCodeOperandKind.imm32:
                i.SetOpKind(n, OpKind.Immediate32);
                i.Immediate32 = (uint)_random.NextInt64(1L << 32);
                break;
            case OpCodeOperandKind.imm32sex64:
                i.SetOpKind(n, OpKind.Immediate32to64);
                i.Immediate32to64 = (int)_random.NextInt64(1L << 32);
                break;
            case OpCodeOperandKind.imm64:
                i.SetOpKind(n, OpKind.Immediate64);
                i.Immediate64 = (ulong)_random.NextInt64(long.MinValue, long.MaxValue);
                break;
            case OpCodeOperandKind.es_rDI:
                i.SetOpKind(n, OpKind.MemoryESRDI);
                break;
            case OpCodeOperandKind.seg_rSI:
                i.SetOpKind(n, OpKind.MemorySegRSI);
                break;
            default:
                throw new NotSupportedException($"{i.Code}: operand kind {kind}");
        }
    }

    private static bool IsSseCompare(Mnemonic mnemonic) =>
        mnemonic is Mnemonic.Cmpps or Mnemonic.Cmppd or Mnemonic.Cmpss or Mnemonic.Cmpsd;

    private void SetMemory(ref Instruction i, int n, OpCodeInfo info)
    {
        i.SetOpKind(n, OpKind.Memory);
        // SSE operands of 16 bytes must be aligned, except for the unaligned moves; CMPXCHG16B too.
        bool aligned =
            i.Mnemonic == Mnemonic.Cmpxchg16b
            || (
                i.MemorySize.GetSize() == 16
                && i.Mnemonic is not (Mnemonic.Movups or Mnemonic.Movupd or Mnemonic.Movdqu)
            );
        int displacement = _random.Next(-2000, 2000);
        i.MemoryBase = Register.R15;
        i.MemoryDisplSize = 8;
        if (_random.Next(2) == 0)
        {
            i.MemoryIndex = Register.R14;
            i.MemoryIndexScale = aligned ? 8 : 1 << _random.Next(4);
        }

        if (i.Mnemonic == Mnemonic.Lea)
        {
            i.MemoryBase = AnyGpr(8);
        }

        i.MemoryDisplacement64 = (ulong)(aligned ? displacement & ~15 : displacement);
    }
}
