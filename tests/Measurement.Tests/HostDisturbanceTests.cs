namespace VirtBench.Measurement.Tests;

public sealed class HostDisturbanceTests
{
    [Theory]
    [InlineData("cpu  1 2 3 4 5 6 7 88 9 10\ncpu0 1 2 3 4 5 6 7 44 9 10\n", 88)]
    [InlineData("cpu  1 2 3 4\n", 0)]
    [InlineData("", 0)]
    [InlineData("cpu a b c d e f g h", 0)]
    public void Steal_is_the_eighth_number_of_all_cpus(string stat, long ticks) =>
        Assert.Equal(ticks, HostDisturbance.StealTicks(stat));

    [Fact]
    public void Disturbance_never_runs_backwards()
    {
        HostDisturbance before = HostDisturbance.Read();
        HostDisturbance since = HostDisturbance.Read().Since(before);
        Assert.True(since.StealNanoseconds >= 0);
        Assert.True(since.InvoluntarySwitches >= 0);
    }

    [Fact]
    public void Switches_are_those_that_the_kernel_tells_of_this_thread()
    {
        Assert.SkipUnless(OperatingSystem.IsLinux(), "there is no /proc/thread-self here");
        long Told() =>
            long.Parse(
                File.ReadLines("/proc/thread-self/status")
                    .First(line => line.StartsWith("nonvoluntary_ctxt_switches:", StringComparison.Ordinal))
                    .Split(':')[1]
            );
        long before = Told();
        long read = HostDisturbance.SwitchesOfCallingThread();
        Assert.InRange(read, before, Told());
    }

    [Fact]
    public void A_pinned_thread_may_run_where_it_was_told_and_again_everywhere_afterwards()
    {
        Assert.SkipUnless(OperatingSystem.IsLinux(), "threads can be pinned on Linux only");
        static string Allowed() =>
            File.ReadLines("/proc/thread-self/status")
                .First(line => line.StartsWith("Cpus_allowed_list:", StringComparison.Ordinal))
                .Split(':')[1]
                .Trim();
        string before = Allowed();
        int cpu = int.Parse(before.Split(',', '-')[0]);
        using (new ThreadAffinity(cpu))
        {
            Assert.Equal($"{cpu}", Allowed());
        }

        Assert.Equal(before, Allowed());
    }
}
