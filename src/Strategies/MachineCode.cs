using Iced.Intel;

namespace VirtBench.Strategies;

/// <summary>From Iced's Assembler to bytes.</summary>
internal static class MachineCode
{
    /// <summary>Assembles for the given address.</summary>
    public static byte[] Assemble(Assembler assembler, ulong address)
    {
        using var stream = new MemoryStream();
        assembler.Assemble(new StreamCodeWriter(stream), address);
        return stream.ToArray();
    }
}
