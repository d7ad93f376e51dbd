namespace VirtBench.Vmm.Boot;

/// <summary>What the boot information tells a guest.</summary>
public sealed record BootOptions
{
    /// <summary>Parameters for the guest, 8 bytes each; at most <see cref="MaximumParameters"/>.</summary>
    public IReadOnlyList<ulong> Parameters { get; init; } = [];

    /// <summary>True when the paravirtual interface is offered (flags bit 0).</summary>
    public bool Paravirtual { get; init; }

    /// <summary>Parameters that fit into the boot information page behind its seven fields of 8 bytes.</summary>
    public const int MaximumParameters = (4096 / 8) - 7;
}
