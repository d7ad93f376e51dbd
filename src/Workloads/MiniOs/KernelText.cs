using System.Text;

namespace VirtBench.Workloads;

/// <summary>The kernel's strings, each behind its length in 8 bytes: gathered while the code is emitted.</summary>
internal sealed class KernelText
{
    private readonly List<byte> _bytes = [];

    /// <summary>Adds a string.</summary>
    /// <returns>Its address.</returns>
    public ulong Add(string text)
    {
        ulong address = MiniOsLayout.KernelText + (ulong)_bytes.Count;
        _bytes.AddRange(BitConverter.GetBytes((ulong)text.Length));
        _bytes.AddRange(Encoding.ASCII.GetBytes(text));
        return address;
    }

    /// <summary>All of them, as they lie from <see cref="MiniOsLayout.KernelText"/>.</summary>
    public byte[] Content => [.. _bytes];
}
