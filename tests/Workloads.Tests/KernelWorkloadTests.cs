using VirtBench.Vmm.Boot;

namespace VirtBench.Workloads.Tests;

/// <summary>What each workload of a guest kernel makes of an engine that does something wrong.</summary>
public sealed class KernelWorkloadTests
{
    private const int Filler = 2000;

    private static GuestImage Image(string id, int k) =>
        WorkloadCatalog.Find(id)!.Build(new WorkloadOptions(k, Filler));

    private static ulong Checksum(string id, int k, ReferenceMachine machine)
    {
        using (machine)
        {
            machine.Execute(Image(id, k), 2, 4);
            Assert.Equal((byte)0, machine.ExitStatus);
            return machine.Result.Checksum;
        }
    }

    [Theory]
    [InlineData("popf", 1)]
    [InlineData("popf", 2)]
    [InlineData("popf", 16)]
    [InlineData("cpuid", 1)]
    [InlineData("cpuid", 4)]
    [InlineData("descriptor-tables", 1)]
    [InlineData("descriptor-tables", 2)]
    public void A_ring_3_that_answers_instead_of_the_platform_changes_the_checksum(string id, int k) =>
        Assert.NotEqual(
            Checksum(id, k, new ReferenceMachine()),
            Checksum(id, k, new ReferenceMachine { Deprivileged = true })
        );

    [Theory]
    [InlineData("popf")]
    [InlineData("cpuid")]
    [InlineData("descriptor-tables")]
    public void The_control_asks_nothing_that_could_be_answered_wrongly(string id) =>
        Assert.Equal(
            Checksum(id, 0, new ReferenceMachine()),
            Checksum(id, 0, new ReferenceMachine { Deprivileged = true })
        );

    [Fact]
    public void Popf_shows_the_flag_set_and_the_flag_clear()
    {
        // With the hole the flag is clear as it was at the start, so the program with POPF leaves what the control leaves.
        Assert.Equal(
            Checksum("popf", 0, new ReferenceMachine()),
            Checksum("popf", 4, new ReferenceMachine { Deprivileged = true })
        );
        Assert.NotEqual(Checksum("popf", 0, new ReferenceMachine()), Checksum("popf", 4, new ReferenceMachine()));
    }

    [Fact]
    public void The_interrupt_flag_stands_as_the_last_of_sti_and_cli_has_left_it()
    {
        ulong on = Checksum("interrupt-flag", 1, new ReferenceMachine());
        ulong off = Checksum("interrupt-flag", 2, new ReferenceMachine());
        Assert.NotEqual(on, off);
        Assert.Equal(on, Checksum("interrupt-flag", 15, new ReferenceMachine()));
        Assert.Equal(off, Checksum("interrupt-flag", 0, new ReferenceMachine()));
    }

    [Fact]
    public void The_units_of_syscall_run_in_ring_3()
    {
        using var machine = ReferenceMachine.Run(Image("syscall", 3), 0, 2);
        Assert.InRange(machine.UserInstructions, 2 * Filler, 2 * (Filler + 3) + 10);
    }

    [Fact]
    public void Every_system_call_counts()
    {
        ulong[] checksums = [.. Enumerable.Range(0, 65).Select(k => Checksum("syscall", k, new ReferenceMachine()))];
        Assert.Equal(checksums.Length, checksums.Distinct().Count());
    }

    [Fact]
    public void Every_timer_interrupt_counts() =>
        Assert.NotEqual(
            Checksum("timer-interrupt", 2, new ReferenceMachine()),
            Checksum("timer-interrupt", 2, new ReferenceMachine { InterruptsTaken = 11 })
        );

    [Fact]
    public void Code_that_is_executed_as_it_was_before_the_store_changes_the_checksum() =>
        Assert.NotEqual(
            Checksum("self-modifying", 1, new ReferenceMachine()),
            Checksum("self-modifying", 1, new ReferenceMachine { StaleCode = true })
        );

    [Fact]
    public void A_page_that_stays_mapped_after_invlpg_changes_the_checksum() =>
        Assert.NotEqual(
            Checksum("pte-update", 1, new ReferenceMachine()),
            Checksum("pte-update", 1, new ReferenceMachine { StaleTlb = true })
        );

    [Theory]
    [InlineData("page-fault")]
    [InlineData("pte-update")]
    public void Every_fault_and_every_changed_entry_counts(string id)
    {
        int most = WorkloadCatalog.Find(id)!.MaximumTrapsPerUnit;
        ulong[] checksums = [.. Enumerable.Range(0, most + 1).Select(k => Checksum(id, k, new ReferenceMachine()))];
        Assert.Equal(checksums.Length, checksums.Distinct().Count());
    }
}
