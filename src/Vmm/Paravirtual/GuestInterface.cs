namespace VirtBench.Vmm.Paravirtual;

/// <summary>What a guest program is built for: how its operations on the machine are expressed.</summary>
public enum GuestInterface : byte
{
    /// <summary>The instructions of a real machine, which the VMM has to see through.</summary>
    Native,

    /// <summary>The paravirtual interface: hypercalls and the shared info page.</summary>
    Paravirtual,
}
