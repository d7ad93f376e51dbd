using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Paravirtual;
using VirtBench.Workloads;

namespace VirtBench.Measurement;

/// <summary>
/// The mark of a sample whose guest executed sensitive instructions that its engine lets through: the beginning of the sample's
/// note, <c>not faithful: popf; another checksum than under hardware</c>.
/// </summary>
/// <param name="Holes">The instructions, as the engine's holes name them.</param>
/// <param name="Evidence">What came of it; null where nothing is known.</param>
public sealed record FaithfulnessMark(IReadOnlyList<string> Holes, string? Evidence = null)
{
    private const string Prefix = "not faithful: ";
    private const string Separator = "; ";
    private const string Differs = "another checksum than under ";
    private const string Agrees = "the same checksum as under ";

    /// <summary>Beginning of the evidence that the guest could not go on.</summary>
    public const string Ended = "the guest ended";

    /// <summary>The guest could not go on.</summary>
    public bool GuestEnded => Evidence?.StartsWith(Ended, StringComparison.Ordinal) == true;

    /// <summary>The guest got another answer than a faithful engine gives, or could not go on.</summary>
    public bool Seen => GuestEnded || Evidence?.StartsWith(Differs, StringComparison.Ordinal) == true;

    /// <summary>The mark with what a comparison of checksums showed.</summary>
    /// <param name="same">Whether they were equal.</param>
    /// <param name="strategy">The faithful strategy.</param>
    public FaithfulnessMark Compared(bool same, string strategy) =>
        this with
        {
            Evidence = (same ? Agrees : Differs) + strategy,
        };

    /// <summary>The text.</summary>
    public override string ToString() =>
        Prefix + string.Join(", ", Holes) + (Evidence is null ? "" : Separator + Evidence);

    /// <summary>The mark that a note begins with, or null.</summary>
    public static FaithfulnessMark? Of(string note)
    {
        if (!note.StartsWith(Prefix, StringComparison.Ordinal))
        {
            return null;
        }

        string[] parts = note[Prefix.Length..].Split(Separator, 3);
        bool known =
            parts.Length > 1
            && (
                parts[1].StartsWith(Differs, StringComparison.Ordinal)
                || parts[1].StartsWith(Agrees, StringComparison.Ordinal)
                || parts[1].StartsWith(Ended, StringComparison.Ordinal)
            );
        return new FaithfulnessMark(parts[0].Split(", "), known ? parts[1] : null);
    }

    /// <summary>
    /// The holes that the sensitive instructions of a workload's image fall through: those of the workload's own operations, not of
    /// what else the program consists of. None for k = 0.
    /// </summary>
    public static IReadOnlyList<VirtualizationHole> HolesIn(
        Workload workload,
        GuestInterface guestInterface,
        int trapsPerUnit,
        GuestImage image,
        EngineCapabilities capabilities
    ) =>
        trapsPerUnit == 0
            ? []
            :
            [
                .. HoleScan
                    .Find(image, [.. workload.HolesUnder(guestInterface, capabilities)])
                    .Select(occurrence => occurrence.Hole)
                    .Distinct(),
            ];
}
