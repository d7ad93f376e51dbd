using Iced.Intel;
using VirtBench.Strategies.Hardware;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using VirtBench.Vmm.Paravirtual;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Hardware.Tests;

/// <summary>The paravirtual interface through /dev/kvm: the port of hypercalls, and the clock.</summary>
public sealed class ParavirtualTests
{
    private const string Paravirtual = "hardware-paravirtual";

    private static HardwareGuest Boot(
        Action<Assembler> program,
        bool offered,
        bool strict = true,
        string strategy = Paravirtual
    )
    {
        HardwareGuest.SkipUnlessAvailable(HardwareGuest.Hardware);
        return new HardwareGuest(
            HardwareGuest.Assemble(program),
            strategy,
            strict: strict,
            options: new BootOptions { Paravirtual = offered }
        );
    }

    [Theory]
    [InlineData(HardwareGuest.Hardware)]
    [InlineData(Paravirtual)]
    public void The_port_of_hypercalls_is_one_like_others_to_a_guest_that_is_not_offered_them(string strategy)
    {
        using HardwareGuest guest = Boot(
            a =>
            {
                a.xor(eax, eax);
                a.@out((byte)Hypercalls.Port, eax);
                a.Exit(0);
            },
            offered: false,
            strategy: strategy
        );
        Assert.Contains("port 0xF8", guest.RunToFailure(), StringComparison.Ordinal);
        Assert.Equal(0, guest.Machine.Ledger.Count(TrapReason.Hypercall));
    }

    [Theory]
    [InlineData(1, true)]
    [InlineData(2, true)]
    [InlineData(4, false)]
    public void Another_access_to_the_port_than_a_hypercalls_is_one_to_a_port(int size, bool writes)
    {
        using HardwareGuest guest = Boot(
            a =>
            {
                AssemblerRegister8 byteRegister = al;
                switch (size)
                {
                    case 1:
                        a.@out((byte)Hypercalls.Port, byteRegister);
                        break;
                    case 2:
                        a.@out((byte)Hypercalls.Port, ax);
                        break;
                    default:
                        a.@in(eax, (byte)Hypercalls.Port);
                        break;
                }

                a.Exit(0);
            },
            offered: true
        );
        string message = guest.RunToFailure();
        Assert.Contains("port 0xF8", message, StringComparison.Ordinal);
        Assert.Equal(writes, message.Contains("OUT to", StringComparison.Ordinal));
    }

    [Fact]
    public void A_hypercall_is_over_when_the_next_instruction_is_executed()
    {
        using HardwareGuest guest = Boot(
            a =>
            {
                a.mov(ebx, 50);
                Label again = a.CreateLabel();
                a.Label(ref again);
                a.mov(eax, (int)HypercallNumber.Features);
                a.@out((byte)Hypercalls.Port, eax);
                a.mov(HardwareGuest.ResultSlot(0), rax);
                a.inc(HardwareGuest.ResultSlot(1));
                a.dec(ebx);
                a.jne(again);
                a.Exit(3);
            },
            offered: true
        );
        Assert.Equal(3, guest.RunToExit());
        Assert.Equal((1UL << HypercallPage.Count) - 1, guest.Result(0));
        Assert.Equal(50u, guest.Result(1));
        Assert.Equal(50, guest.Machine.Ledger.Count(TrapReason.Hypercall));
    }

    [Fact]
    public void A_batch_of_updates_inside_a_multicall_is_seen_by_the_next_access()
    {
        const ulong page = HardwareGuest.Data;
        const ulong records = HardwareGuest.Results + 0x1000;
        const ulong update = records + 0x100;
        using HardwareGuest guest = Boot(
            a =>
            {
                a.mov(rbx, __qword_ptr[1UL << 30]);
                a.mov(HardwareGuest.ResultSlot(0), rbx);
                a.mov(rdi, records);
                a.mov(esi, 1);
                a.call(HypercallPage.EntryOf(HypercallNumber.Multicall));
                a.mov(rbx, __qword_ptr[1UL << 30]);
                a.mov(HardwareGuest.ResultSlot(1), rbx);
                a.Exit(0);
            },
            offered: true
        );
        const ulong rights = Pte.Present | Pte.Writable | Pte.Accessed | Pte.Dirty;
        const ulong directory = HardwareGuest.Tables;
        const ulong table = directory + 0x1000;
        guest.Memory.Write(PhysicalLayout.PageTables + 0x1008, directory | rights);
        guest.Memory.Write(directory, table | rights);
        guest.Memory.Write(table, page | rights);
        guest.Memory.Write(page, 1UL);
        guest.Memory.Write(page + 0x8000, 2UL);
        guest.Memory.Write(records, (ulong)HypercallNumber.UpdatePageTables);
        guest.Memory.Write(records + 8, update);
        guest.Memory.Write(records + 16, 1UL);
        guest.Memory.Write(update, table);
        guest.Memory.Write(update + 8, (page + 0x8000) | rights);
        Assert.Equal(0, guest.RunToExit());
        Assert.Equal((1u, 2u), (guest.Result(0), guest.Result(1)));
        Assert.Equal(1u, guest.Memory.Read<ulong>(records + 40));
    }

    [Fact]
    public void The_time_source_says_who_keeps_the_paravirtual_clock()
    {
        using HardwareGuest guest = Boot(a => a.Exit(0), offered: true);
        string keeper = KvmClock.WhyNotKept is { } why ? $"by the VMM, since {why}" : "by KVM";
        Assert.EndsWith($"paravirtual clock {keeper}", guest.Machine.Capabilities.TimeSource, StringComparison.Ordinal);
        Assert.Equal(0, guest.RunToExit());
        ParavirtualClock clock = guest.Memory.Read<ParavirtualClock>(PhysicalLayout.SharedInfoPage + 0x40);
        Assert.True(clock.Version % 2 == 0 && clock.TscToSystemMultiplier != 0);
        TestContext.Current.SendDiagnosticMessage(guest.Machine.Capabilities.TimeSource);
    }
}
