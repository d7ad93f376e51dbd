namespace VirtBench.Vmm.Execution;

/// <summary>Is shown every block that an engine translates; see <see cref="IExecutionEngine.ObserveTranslation"/>.</summary>
public interface ITranslationObserver
{
    /// <summary>
    /// A block has been translated and not been executed yet. Called on the vCPU thread, in the order of translation; the same
    /// guest code comes again when it is translated again.
    /// </summary>
    /// <param name="block">What was made. Its lists and bytes are the engine's, and good until this call returns.</param>
    void Translated(in TranslatedBlock block);
}

/// <summary>Guest code and the host code that an engine has made of it, as it was when it was made: linking may change it later.</summary>
/// <param name="GuestAddress">Linear address of the first guest instruction.</param>
/// <param name="Entry">
/// Host code before the first instruction, a poll for events for example; without bytes where there is none. Its address is where
/// the block is entered.
/// </param>
/// <param name="Instructions">The guest instructions in the order of their host code, which is that of execution.</param>
/// <param name="Exits">Host code behind the last instruction: the ways out of the block that are not linked to another yet.</param>
public readonly record struct TranslatedBlock(
    ulong GuestAddress,
    HostCode Entry,
    IReadOnlyList<TranslatedInstruction> Instructions,
    HostCode Exits
);

/// <summary>One guest instruction and what it became.</summary>
/// <param name="GuestAddress">Its linear address.</param>
/// <param name="GuestBytes">Its bytes, 1 to 15.</param>
/// <param name="Host">What it became; without bytes where nothing was left to do.</param>
public readonly record struct TranslatedInstruction(ulong GuestAddress, ReadOnlyMemory<byte> GuestBytes, HostCode Host);

/// <summary>A piece of host code.</summary>
/// <param name="Address">Where the carrier executes it.</param>
/// <param name="Bytes">Its bytes.</param>
public readonly record struct HostCode(ulong Address, ReadOnlyMemory<byte> Bytes);
