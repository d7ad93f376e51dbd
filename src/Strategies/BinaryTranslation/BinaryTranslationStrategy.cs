using VirtBench.Strategies.Carrier;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.BinaryTranslation;

/// <summary>Dynamic binary translation of all guest code, x86-64 to x86-64, in a carrier.</summary>
public sealed class BinaryTranslationStrategy : Strategy
{
    private static readonly CarrierProbe Probe = new(
        (cpu, memory, byIret) =>
            OperatingSystem.IsLinux()
                ? new TranslationEngine(
                    cpu,
                    memory,
                    new TranslationOptions { ReturnByIret = byIret, TimeSource = "self-check" }
                )
                : throw new PlatformNotSupportedException()
    );

    /// <inheritdoc/>
    public override string Id => "binary-translation";

    /// <inheritdoc/>
    public override string Label => "Binary translation";

    /// <inheritdoc/>
    public override string Description =>
        "all guest code is translated on first use and runs in the host's ring 3; sensitive instructions inline or by callout";

    /// <inheritdoc/>
    public override bool IsSimulated => false;

    /// <inheritdoc/>
    public override bool RunsPrivilegedGuests => true;

    /// <summary>Count the indirect branches that find their target inline (<see cref="TranslationStatistics.LookupHits"/>), which costs time.</summary>
    public bool CountsLookups { get; init; }

    /// <summary>Bytes of the code cache that each address space and ring of the guest has; 1 to 64 MiB in whole pages.</summary>
    /// <exception cref="ArgumentOutOfRangeException">It is not such a number.</exception>
    public int CodeCacheSize
    {
        get;
        init
        {
            if (value is < (1 << 20) or > (64 << 20) || value % (int)GuestMemory.PageSize != 0)
            {
                throw new ArgumentOutOfRangeException(
                    nameof(CodeCacheSize),
                    value,
                    "a code cache has 1 to 64 MiB in whole pages"
                );
            }

            field = value;
        }
    } = 16 << 20;

    /// <inheritdoc/>
    public override string? UnavailableReason() => Probe.UnavailableReason;

    /// <inheritdoc/>
    public override string? WhyNotDelivered(InterruptDelivery delivery) => null;

    /// <inheritdoc/>
    public override IExecutionEngine CreateEngine(VirtualCpu cpu, GuestMemory memory) =>
        CreateEngine(cpu, memory, InterruptDelivery.Exit);

    /// <inheritdoc/>
    public override IExecutionEngine CreateEngine(VirtualCpu cpu, GuestMemory memory, InterruptDelivery delivery)
    {
        if (!OperatingSystem.IsLinux() || UnavailableReason() is not null)
        {
            throw new PlatformNotSupportedException(UnavailableReason());
        }

        return new TranslationEngine(
            cpu,
            memory,
            new TranslationOptions
            {
                CodeCacheSize = CodeCacheSize,
                CountLookups = CountsLookups,
                DeliverInline = delivery == InterruptDelivery.Direct,
                ReturnByIret = Probe.IretRefusal is null,
                TimeSource =
                    "measured on this host; exits are calls out of translated code through shared memory, faults are signals",
            }
        );
    }
}
