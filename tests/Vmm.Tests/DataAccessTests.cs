using Iced.Intel;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Devices;
using VirtBench.Vmm.Emulation;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Vmm.Tests;

/// <summary>Ordinary instructions on guest-physical addresses without RAM: all ones, and writes go nowhere.</summary>
public sealed class DataAccessTests : IDisposable
{
    private const ulong Absent = 0x2000_0000; // identity-mapped, beyond RAM
    private const ulong Edge = 0x4000_0FFC; // the last dword of RAM; what follows it is absent

    private readonly GuestMachine _guest = new();

    public DataAccessTests()
    {
        _ = _guest.Map(0x4000_0000, GuestMachine.RamSize - 0x1000);
        _ = _guest.Map(0x4000_1000, 0x30_0000_0000);
        _guest.Cpu.Rax = Absent;
    }

    private VirtualCpu Cpu => _guest.Cpu;

    public void Dispose() => _guest.Dispose();

    private void Access(Action<Assembler> instruction, int accesses = 1)
    {
        long before = _guest.Absent.UnclaimedAccesses;
        ulong rip = Cpu.Rip;
        Assert.Equal(EmulationResult.Done, _guest.Execute(instruction, dataAccess: true));
        Assert.Equal(rip + (ulong)_guest.Length, Cpu.Rip);
        Assert.Equal(accesses, _guest.Absent.UnclaimedAccesses - before);
    }

    [Fact]
    public void Loads_read_all_ones_of_their_size()
    {
        Cpu[Gpr.Rcx] = 0;
        Access(a => a.mov(cl, __[rax]));
        Assert.Equal(0xFFUL, Cpu[Gpr.Rcx]);
        Access(a => a.mov(ch, __[rax]));
        Assert.Equal(0xFFFFUL, Cpu[Gpr.Rcx]);
        Access(a => a.mov(ecx, __[rax + 8]));
        Assert.Equal(0xFFFF_FFFFUL, Cpu[Gpr.Rcx]);
        Access(a => a.mov(rcx, __[rax]));
        Assert.Equal(ulong.MaxValue, Cpu[Gpr.Rcx]);
        Access(a => a.movzx(ecx, __word_ptr[rax]));
        Assert.Equal(0xFFFFUL, Cpu[Gpr.Rcx]);
        Access(a => a.movsx(ecx, __byte_ptr[rax]));
        Assert.Equal(0xFFFF_FFFFUL, Cpu[Gpr.Rcx]);
        Access(a => a.movsxd(rcx, __dword_ptr[rax]));
        Assert.Equal(ulong.MaxValue, Cpu[Gpr.Rcx]);
    }

    [Fact]
    public void Stores_are_dropped_and_counted()
    {
        Access(a => a.mov(__[rax], rcx));
        Access(a => a.mov(__byte_ptr[rax], 5));
        Access(a => a.mov(__qword_ptr[rax], -1));
    }

    [Fact]
    public void Absolute_rip_relative_and_indexed_addresses_are_computed()
    {
        Access(a => a.mov(rcx, __[0x2000_0000]));
        Access(a =>
            a.AddInstruction(
                Instruction.Create(
                    Code.Mov_r64_rm64,
                    Register.RCX,
                    new MemoryOperand(Register.RIP, Register.None, 1, (long)Absent, 8)
                )
            )
        );
        Cpu.Rax = Absent - 0x100;
        Cpu[Gpr.Rbx] = 0x20;
        Access(a => a.mov(rcx, __[rax + (rbx * 8)]));
    }

    [Fact]
    public void An_access_that_straddles_the_end_of_RAM_is_half_real()
    {
        _guest.Memory.Write(GuestMachine.RamSize - 4, 0x1122_3344u);
        Cpu.Rax = Edge;
        Access(a => a.mov(rcx, __[rax]));
        Assert.Equal(0xFFFF_FFFF_1122_3344UL, Cpu[Gpr.Rcx]);
        Cpu[Gpr.Rcx] = 0x5555_5555_6666_6666;
        Access(a => a.mov(__[rax], rcx));
        Assert.Equal(0x6666_6666u, _guest.Memory.Read<uint>(GuestMachine.RamSize - 4));
    }

    [Theory]
    [InlineData("add", 1UL, 0UL, Rflags.Cf | Rflags.Zf | Rflags.Pf | Rflags.Af)]
    [InlineData("sub", 1UL, 2UL, Rflags.Cf | Rflags.Af)]
    [InlineData("cmp", 1UL, 1UL, Rflags.Cf | Rflags.Af)]
    [InlineData("and", 0x8000_0001UL, 0x8000_0001UL, Rflags.Sf)]
    [InlineData("or", 1UL, 0xFFFF_FFFFUL, Rflags.Sf | Rflags.Pf)]
    [InlineData("xor", 0xFFFF_FFFFUL, 0UL, Rflags.Zf | Rflags.Pf)]
    [InlineData("add", 0x8000_0000UL, 0x7FFF_FFFFUL, Rflags.Cf | Rflags.Of | Rflags.Pf)]
    public void Arithmetic_with_all_ones_sets_result_and_flags(string name, ulong left, ulong result, ulong flags)
    {
        Cpu[Gpr.Rcx] = left;
        Access(a =>
        {
            switch (name)
            {
                case "add":
                    a.add(ecx, __[rax]);
                    break;
                case "sub":
                    a.sub(ecx, __[rax]);
                    break;
                case "cmp":
                    a.cmp(ecx, __[rax]);
                    break;
                case "and":
                    a.and(ecx, __[rax]);
                    break;
                case "or":
                    a.or(ecx, __[rax]);
                    break;
                default:
                    a.xor(ecx, __[rax]);
                    break;
            }
        });
        Assert.Equal((result, flags), (Cpu[Gpr.Rcx], Cpu.Rflags & Rflags.Arithmetic));
    }

    [Fact]
    public void Arithmetic_on_memory_reads_and_writes_but_test_only_reads()
    {
        Access(a => a.add(__dword_ptr[rax], 1), accesses: 2);
        Assert.Equal(Rflags.Zf, Cpu.Rflags & Rflags.Zf);
        Access(a => a.test(__dword_ptr[rax], 1));
        Access(a => a.cmp(__dword_ptr[rax], -1));
        Assert.Equal(Rflags.Zf, Cpu.Rflags & Rflags.Zf);
    }

    [Fact]
    public void A_read_modify_write_of_a_read_only_page_faults_as_a_write()
    {
        _ = _guest.Map(0x4000_2000, 0x30_0000_0000, Pte.Present);
        Cpu.Rax = 0x4000_2000;
        string before = _guest.State();
        Assert.Equal(EmulationResult.Event, _guest.Execute(a => a.or(__dword_ptr[rax], 1), dataAccess: true));
        Assert.Equal(GuestEvent.PageFault(0x4000_2000, PageFaultError.Protection | PageFaultError.Write), _guest.Event);
        Assert.Equal(before, _guest.State());
    }

    [Fact]
    public unsafe void Vector_moves_go_through_the_lazily_held_state()
    {
        ulong* value = (ulong*)((byte*)Cpu.Registers + GuestRegisters.XmmOffset + (3 * 16));
        (value[0], value[1]) = (1, 2);
        Access(a => a.movq(xmm3, __qword_ptr[rax]));
        Assert.Equal((ulong.MaxValue, 0UL), (value[0], value[1]));
        Access(a => a.movups(xmm3, __xmmword_ptr[rax]));
        Assert.Equal((ulong.MaxValue, ulong.MaxValue), (value[0], value[1]));
        Assert.Equal(["save", "load", "save", "load"], _guest.Engine.Calls);
        Access(a => a.movdqa(__xmmword_ptr[rax], xmm3));
        Cpu.Rax = Edge;
        (value[0], value[1]) = (0x1234_5678_9ABC_DEF0, 0);
        Access(a => a.movdqu(__xmmword_ptr[rax], xmm3));
        Assert.Equal(0x9ABC_DEF0u, _guest.Memory.Read<uint>(GuestMachine.RamSize - 4));
    }

    [Fact]
    public void A_misaligned_movaps_raises_GP()
    {
        Cpu.Rax++;
        Assert.Equal(EmulationResult.Event, _guest.Execute(a => a.movaps(xmm0, __xmmword_ptr[rax]), dataAccess: true));
        Assert.Equal(GuestEvent.Exception(Vector.GeneralProtection), _guest.Event);
    }

    [Fact]
    public void String_moves_copy_fill_and_load()
    {
        (Cpu[Gpr.Rsi], Cpu[Gpr.Rdi], Cpu[Gpr.Rcx]) = (Absent, GuestMachine.Data, 3);
        Access(a => a.rep.movsd(), accesses: 3);
        Assert.Equal(uint.MaxValue, _guest.Memory.Read<uint>(GuestMachine.Data + 8));
        Assert.Equal(0u, _guest.Memory.Read<uint>(GuestMachine.Data + 12));
        Assert.Equal((Absent + 12, GuestMachine.Data + 12, 0UL), (Cpu[Gpr.Rsi], Cpu[Gpr.Rdi], Cpu[Gpr.Rcx]));
        (Cpu[Gpr.Rdi], Cpu[Gpr.Rcx]) = (Absent, 2);
        Access(a => a.rep.stosq(), accesses: 2);
        Cpu.Rax = 0;
        Access(a => a.lodsw());
        Assert.Equal(0xFFFFUL, Cpu.Rax);
    }

    [Fact]
    public void A_sensitive_instruction_may_touch_absent_memory_too()
    {
        Access(a => a.sgdt(__[rax]));
        Access(a => a.lldt(__word_ptr[rax]), 1, Vector.GeneralProtection, 0xFFFC);
    }

    private void Access(Action<Assembler> instruction, int accesses, byte vector, uint errorCode)
    {
        Assert.Equal(EmulationResult.Event, _guest.Execute(instruction, dataAccess: true));
        Assert.Equal(GuestEvent.Exception(vector, errorCode), _guest.Event);
        Assert.InRange(_guest.Absent.UnclaimedAccesses, accesses, long.MaxValue);
    }

    [Fact]
    public void Anything_else_ends_the_guest_naming_it()
    {
        GuestFailureException failure = Assert.Throws<GuestFailureException>(() =>
            _guest.Execute(a => a.cmpxchg(__[rax], rcx), dataAccess: true)
        );
        Assert.Contains("cmpxchg", failure.Message, StringComparison.Ordinal);
        Assert.Contains("[480FB108] at RIP 0x100000", failure.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_strict_bus_ends_the_guest_naming_address_and_rip()
    {
        PhysicalBus strict = new() { Strict = true };
        GuestAddressSpace space = new(Cpu, _guest.Memory, strict);
        GuestFailureException failure = Assert.Throws<GuestFailureException>(() =>
            space.TryWrite(Absent + 4, 1u, PageAccess.Write, out _)
        );
        Assert.Contains("guest-physical 0x20000004", failure.Message, StringComparison.Ordinal);
        Assert.Contains("RIP 0x100000", failure.Message, StringComparison.Ordinal);
    }
}
