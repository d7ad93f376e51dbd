using VirtBench.Vmm.Boot;

namespace VirtBench.Workloads.Tests;

public sealed class Cr3SwitchTests
{
    [Theory]
    [InlineData(2, 8)]
    [InlineData(3, 1)]
    [InlineData(16, 64)]
    [InlineData(1, 512)]
    public void Every_address_space_is_entered_in_turn(int addressSpaces, int pages)
    {
        var workload = new Cr3Switch(addressSpaces, pages);
        GuestImage image = workload.Build(new WorkloadOptions(1, workload.MinimumFiller));
        using var machine = ReferenceMachine.Run(image, 0, 40);
        Assert.Equal(40, machine.RegionSensitive);
        Assert.Equal(addressSpaces, machine.AddressSpacesEntered.Count);
    }

    [Fact]
    public void The_control_stays_in_one_address_space()
    {
        var workload = new Cr3Switch();
        using var machine = ReferenceMachine.Run(workload.Build(new WorkloadOptions(0, workload.DefaultFiller)), 1, 2);
        Assert.Single(machine.AddressSpacesEntered);
    }

    [Fact]
    public void A_switch_that_is_lost_changes_the_checksum()
    {
        var workload = new Cr3Switch();
        GuestImage image = workload.Build(new WorkloadOptions(2, workload.DefaultFiller));
        using var right = ReferenceMachine.Run(image, 1, 2);
        using var wrong = new ReferenceMachine { SwitchesObeyed = 2 };
        wrong.Execute(image, 1, 2);
        Assert.Equal(right.RegionInstructions, wrong.RegionInstructions);
        Assert.NotEqual(right.Result.Checksum, wrong.Result.Checksum);
    }

    [Fact]
    public void The_checksum_differs_from_k_to_k_because_every_space_holds_other_numbers()
    {
        var workload = new Cr3Switch();
        var checksums = new HashSet<ulong>();
        for (int k = 0; k <= workload.MaximumTrapsPerUnit; k++)
        {
            using var machine = ReferenceMachine.Run(workload.Build(new WorkloadOptions(k, 1000)), 1, 3);
            checksums.Add(machine.Result.Checksum);
        }

        Assert.Equal(workload.MaximumTrapsPerUnit + 1, checksums.Count);
    }

    [Theory]
    [InlineData(0, 8)]
    [InlineData(17, 8)]
    [InlineData(2, 0)]
    [InlineData(2, 513)]
    public void Sizes_outside_the_limits_are_refused(int addressSpaces, int pages) =>
        Assert.Throws<ArgumentOutOfRangeException>(() => new Cr3Switch(addressSpaces, pages));
}
