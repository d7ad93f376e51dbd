using VirtBench.Strategies.TrapAndEmulate;

namespace VirtBench.Strategies.Tests.DirectExecution;

[Collection(CarrierCollection.Name)]
public sealed class DirectExecutionProbeTests
{
    [Fact]
    public void Both_return_paths_bring_every_register_back()
    {
        DirectGuest.SkipUnlessAvailable();
        Assert.Null(DirectExecutionProbe.IretRefusal);
    }
}
