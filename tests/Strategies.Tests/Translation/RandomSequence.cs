using Iced.Intel;
using VirtBench.Strategies.Tests.Simulation;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Strategies.Tests.Translated;

/// <summary>
/// Seeded random guest code with control flow: pieces of <see cref="RandomCode"/> joined by every kind of branch, loop, call and return
/// that ends. Flags live on from one piece to the next, but for those that the manual leaves undefined.
/// </summary>
internal sealed class RandomSequence
{
    /// <summary>Counters and saved stack pointers of the code, which no random instruction reaches.</summary>
    public const ulong Slots = BehaviourGuest.Data + 0x8000;

    private const int MaximumPieces = 6;
    private const int MaximumDepth = 3;

    private static readonly AssemblerRegister64[] Destinations =
    [
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
    ];

    private readonly Random _random;
    private readonly RandomCode _code;
    private readonly List<(Label Label, int Depth, int Release)> _functions = [];
    private Assembler _a = null!;
    private ulong _slot;

    public RandomSequence(int seed)
    {
        _random = new Random(seed);
        _code = new RandomCode(seed, BehaviourGuest.Spare, IsWanted);
    }

    // Results that the manual leaves undefined: a 16-bit double shift by more than 16 bits.
    private static bool IsWanted(OpCodeInfo info) =>
        info.Code
            is not (
                Code.Shld_rm16_r16_imm8
                or Code.Shld_rm16_r16_CL
                or Code.Shrd_rm16_r16_imm8
                or Code.Shrd_rm16_r16_CL
            );

    /// <summary>Assembles one sequence.</summary>
    /// <param name="at">Its address.</param>
    /// <param name="end">Where it goes in the end.</param>
    public byte[] Next(ulong at, ulong end)
    {
        _a = new Assembler(64);
        _slot = Slots;
        _functions.Clear();
        int pieces = _random.Next(1, MaximumPieces);
        for (int i = 0; i < pieces; i++)
        {
            Straight(5);
            Join(depth: 0);
        }

        _a.jmp(end);
        for (int i = 0; i < _functions.Count; i++)
        {
            EmitFunction(i);
        }

        using var stream = new MemoryStream();
        _a.Assemble(new StreamCodeWriter(stream), at);
        return stream.ToArray();
    }

    private AssemblerRegister64 Any() => Destinations[_random.Next(Destinations.Length)];

    private ulong Slot() => (_slot += 8) - 8;

    // Ends with flags that the manual defines.
    private void Straight(int most)
    {
        int count = _random.Next(1, most + 1);
        _ = _code.Next(count, out RflagsBits undefined);
        for (int i = 0; i < _code.Count; i++)
        {
            _a.AddInstruction(_code[i]);
        }

        if (undefined != RflagsBits.None)
        {
            _a.cmp(Any(), Any());
        }
    }

    private void Jcc(Label target)
    {
        switch (_random.Next(16))
        {
            case 0:
                _a.jo(target);
                break;
            case 1:
                _a.jno(target);
                break;
            case 2:
                _a.jb(target);
                break;
            case 3:
                _a.jae(target);
                break;
            case 4:
                _a.je(target);
                break;
            case 5:
                _a.jne(target);
                break;
            case 6:
                _a.jbe(target);
                break;
            case 7:
                _a.ja(target);
                break;
            case 8:
                _a.js(target);
                break;
            case 9:
                _a.jns(target);
                break;
            case 10:
                _a.jp(target);
                break;
            case 11:
                _a.jnp(target);
                break;
            case 12:
                _a.jl(target);
                break;
            case 13:
                _a.jge(target);
                break;
            case 14:
                _a.jle(target);
                break;
            default:
                _a.jg(target);
                break;
        }
    }

    private void UseFlags()
    {
        _a.setb(al);
        _a.adc(Any(), Any());
        _a.sbb(Any(), _random.Next());
        _a.cmovs(Any(), Any());
    }

    private void Join(int depth)
    {
        Label after = _a.CreateLabel();
        AssemblerRegister64 register = Any();
        switch (_random.Next(18))
        {
            case 0:
                return;
            case 1:
                Jcc(after);
                Straight(3);
                _a.Label(ref after);
                break;
            case 2:
                Label other = _a.CreateLabel();
                Jcc(other);
                Straight(3);
                _a.jmp(after);
                _a.Label(ref other);
                Straight(3);
                _a.Label(ref after);
                UseFlags();
                break;
            case 3 when depth < MaximumDepth:
                Label again = _a.CreateLabel();
                ulong counter = Slot();
                _a.mov(__dword_ptr[counter], _random.Next(1, 6));
                _a.Label(ref again);
                Straight(4);
                Join(depth + 1);
                _a.dec(__dword_ptr[counter]);
                _a.jnz(again);
                UseFlags();
                return;
            case 4 or 5 when depth < MaximumDepth:
                _a.call(Function(depth, 0));
                UseFlags();
                return;
            case 6 when depth < MaximumDepth:
                _a.push(Any());
                _a.push(Any());
                _a.call(Function(depth, 16));
                return;
            case 7 when depth < MaximumDepth:
                _a.lea(register, __[Function(depth, 0)]);
                _a.call(register);
                UseFlags();
                return;
            case 8 when depth < MaximumDepth:
                ulong pointer = Slot();
                _a.lea(register, __[Function(depth, 0)]);
                _a.mov(__qword_ptr[pointer], register);
                _a.call(__qword_ptr[pointer]);
                return;
            case 9:
                _a.lea(register, __[after]);
                _a.jmp(register);
                _a.ud2();
                _a.Label(ref after);
                UseFlags();
                return;
            case 10:
                ulong target = Slot();
                _a.lea(register, __[after]);
                _a.mov(__qword_ptr[target], register);
                _a.jmp(__qword_ptr[target]);
                _a.ud2();
                _a.Label(ref after);
                UseFlags();
                return;
            case 11:
                _a.lea(register, __[after]);
                _a.push(register);
                _a.ret();
                _a.ud2();
                _a.Label(ref after);
                UseFlags();
                return;
            case 12:
                _a.jrcxz(after);
                _a.add(register, rcx);
                _a.Label(ref after);
                UseFlags();
                return;
            case 13:
                _a.mov(ecx, _random.Next(1, 9));
                _a.Label(ref after);
                _a.adc(rax, rcx);
                _a.rcl(rbx, 3);
                if (_random.Next(2) == 0)
                {
                    _a.loop(after);
                }
                else
                {
                    _a.cmp(rcx, _random.Next(4));
                    _a.loopne(after);
                }

                _a.cmp(rax, rbx); // RCL has left OF undefined
                return;
            case 14:
                _a.pushfq();
                _a.and(__qword_ptr[rsp], 0x8D5); // before anything else sees the host's own flags
                _a.pop(register);
                return;
            case 15:
                _a.push(2 | (_random.Next() & 0x8D5));
                _a.popfq();
                UseFlags();
                return;
            case 16:
                Label[] targets = [.. Enumerable.Range(0, 4).Select(_ => _a.CreateLabel())];
                ulong table = Slot();
                _slot += 24;
                for (int i = 0; i < targets.Length; i++)
                {
                    _a.lea(register, __[targets[i]]);
                    _a.mov(__qword_ptr[table + (8 * (ulong)i)], register);
                }

                AssemblerRegister64 index = Any();
                _a.and(index, 3);
                _a.jmp(__qword_ptr[(index * 8) + (long)table]);
                for (int i = 0; i < targets.Length; i++)
                {
                    _a.Label(ref targets[i]);
                    Straight(2);
                    if (_random.Next(2) == 0)
                    {
                        _a.jmp(after);
                    }
                }

                _a.Label(ref after);
                _a.nop();
                return;
            default:
                // Relative to RIP, with and without something behind the displacement.
                ulong place = BehaviourGuest.Data + 4096 + (ulong)_random.Next(-250, 250) * 8;
                _a.AddInstruction(RelativeToRip(place, b => b.add(__qword_ptr[r15], 0x0102_0304)));
                _a.AddInstruction(RelativeToRip(place, b => b.xor(register, __qword_ptr[r15])));
                _a.AddInstruction(RelativeToRip(place, b => b.lea(Any(), __[r15])));
                return;
        }
    }

    private static Instruction RelativeToRip(ulong address, Action<Assembler> one)
    {
        var a = new Assembler(64);
        one(a);
        Instruction instruction = a.Instructions[0];
        instruction.MemoryBase = Register.RIP;
        instruction.MemoryDisplSize = 8;
        instruction.MemoryDisplacement64 = address;
        return instruction;
    }

    private Label Function(int depth, int release)
    {
        Label label = _a.CreateLabel();
        _functions.Add((label, depth + 1, release));
        return label;
    }

    // What its pieces push or pop is nobody's business outside: it keeps its stack pointer, and a distance to the return
    // address.
    private void EmitFunction(int number)
    {
        (Label label, int depth, int release) = _functions[number];
        ulong stack = Slot();
        _a.Label(ref label);
        _a.mov(__qword_ptr[stack], rsp);
        _a.lea(rsp, __[rsp - 512]);
        Straight(4);
        Join(depth);
        _a.mov(rsp, __qword_ptr[stack]);
        if (release == 0)
        {
            _a.ret();
        }
        else
        {
            _a.ret((short)release);
        }
    }
}
