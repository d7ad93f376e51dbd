namespace VirtBench.Vmm.Execution;

/// <summary>A sensitive instruction that does not trap under an engine, so that the guest sees something untrue.</summary>
/// <param name="Instruction">
/// Mnemonic, lower case, with operands where they matter: "popf"; "mov r,sreg" for every segment register or "mov r,cs" for
/// one; "push fs/gs" for two of them; "mov sreg / pop fs" for two instructions.
/// </param>
/// <param name="Effect">What the guest gets instead of the right answer, in half a sentence.</param>
public sealed record VirtualizationHole(string Instruction, string Effect)
{
    /// <summary>The instruction is handled rightly in ring 0, and falls through in ring 3 only.</summary>
    public bool InUserModeOnly { get; init; }

    /// <summary>The guest does not get an untrue answer but cannot go on: <see cref="Effect"/> says how it ends.</summary>
    public bool EndsGuest { get; init; }

    /// <summary>The names of all that this hole covers, without blanks after commas: "mov sreg", "pop fs", "pop gs".</summary>
    public IEnumerable<string> Names
    {
        get
        {
            foreach (string part in Instruction.Split(" / "))
            {
                int blank = part.IndexOf(' ', StringComparison.Ordinal);
                if (blank < 0)
                {
                    yield return part;
                    continue;
                }

                foreach (string operands in part[blank..].Replace(" ", "", StringComparison.Ordinal).Split('/'))
                {
                    // "mov sreg,r" and "mov sreg" are the same: nothing but a register or memory is moved there.
                    yield return $"{part[..blank]} {(operands == "sreg,r" ? "sreg" : operands)}";
                }
            }
        }
    }
}

/// <summary>What an engine can and cannot do; the same for its whole life.</summary>
public sealed record EngineCapabilities
{
    /// <summary>Sensitive instructions that are executed without the VMM seeing them. Empty for a faithful engine.</summary>
    public IReadOnlyList<VirtualizationHole> Holes { get; init; } = [];

    /// <summary>RDTSC and RDTSCP exit to the VMM.</summary>
    public bool TrapsTimeStampCounter { get; init; }

    /// <summary>Guest ring-0 instructions exit or fault as on a deprivileged CPU; false when they simply execute.</summary>
    public bool TrapsPrivilegedInstructions { get; init; }

    /// <summary>
    /// Sensitive instructions that the engine serves as the platform has them without leaving guest code, named as holes are
    /// (<see cref="VirtualizationHole.Names"/>): they cost something, and exit no more than in case of need.
    /// </summary>
    public IReadOnlyList<string> Inlined { get; init; } = [];

    /// <summary>
    /// The guest's interrupt flag changes without an exit: the core asks by <see cref="IExecutionEngine.RequestInterruptWindow"/>
    /// to be told when it has been set.
    /// </summary>
    public bool InlinesInterruptFlag { get; init; }

    /// <summary>
    /// Events are delivered by the hardware: the core hands them to <see cref="IExecutionEngine.Inject"/> instead of walking
    /// the guest's IDT itself.
    /// </summary>
    public bool DeliversEvents { get; init; }

    /// <summary>
    /// How guest-physical memory is reached where the host's virtualization hardware or kernel does it ("nested paging
    /// (NPT)", "shadow paging by KVM"); null where the core's own shadow page tables do.
    /// </summary>
    public string? Paging { get; init; }

    /// <summary>
    /// Names of the counters that <see cref="IExecutionEngine.ReadKernelStatistics"/> reads: what the host's kernel counts
    /// of this vCPU, exits that it handles itself included. Empty where there is no such account.
    /// </summary>
    public IReadOnlyList<string> KernelStatistics { get; init; } = [];

    /// <summary>Lowest linear address a guest may map, in bytes.</summary>
    public ulong LowestAddress { get; init; }

    /// <summary>First linear address a guest may not map; 0 means the whole canonical range is free.</summary>
    public ulong AddressLimit { get; init; }

    /// <summary>
    /// Ticks of the engine's clock that one exit spends in the world switch out of the guest; null where it cannot be
    /// told apart (a real CPU stamps neither side of a signal).
    /// </summary>
    public double? SwitchOutTicks { get; init; }

    /// <summary>As <see cref="SwitchOutTicks"/>, for the way back in.</summary>
    public double? SwitchInTicks { get; init; }

    /// <summary>True when times are computed from a cost model, false when they are measured on the host.</summary>
    public bool ComputedTime { get; init; }

    /// <summary>Where this engine's times come from, for tables and figures: "measured: …" or "computed: …".</summary>
    public required string TimeSource { get; init; }
}
