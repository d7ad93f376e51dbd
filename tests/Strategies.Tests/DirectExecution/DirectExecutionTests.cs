using VirtBench.Strategies.TrapAndEmulate;

namespace VirtBench.Strategies.Tests.DirectExecution;

public sealed class DirectExecutionProbeTests
{
    [Fact]
    public void Both_return_paths_bring_every_register_back()
    {
        Assert.SkipUnless(OperatingSystem.IsLinux(), "direct execution needs Linux");
        Assert.Null(DirectExecutionProbe.UnavailableReason);
        Assert.Null(DirectExecutionProbe.IretRefusal);
    }
}
