using System.Runtime.Versioning;
using System.Text;
using VirtBench.Strategies.Native;

namespace VirtBench.Strategies.Hardware;

/// <summary>
/// The counters that KVM keeps of one vCPU, by its binary interface (Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD): which
/// there are is read from the descriptor itself. Only sums of one value are taken, no histograms, no states.
/// </summary>
[SupportedOSPlatform("linux")]
internal sealed unsafe class KvmStatistics : IDisposable
{
    private const uint TypeMask = 0xF;
    private const uint Cumulative = 0;

    private readonly int _fd;
    private readonly long _start;
    private readonly uint[] _offsets;
    private readonly byte[] _buffer;

    private KvmStatistics(int fd, long start, string[] names, uint[] offsets)
    {
        _fd = fd;
        _start = start;
        _offsets = offsets;
        _buffer = new byte[offsets.Length == 0 ? 0 : offsets.Max() + sizeof(ulong)];
        Names = names;
    }

    /// <summary>Names of the counters, as the kernel gives them.</summary>
    public IReadOnlyList<string> Names { get; }

    /// <summary>Opens a vCPU's counters; null where the kernel tells none.</summary>
    public static KvmStatistics? Open(KvmMachine machine)
    {
        int fd = machine.OpenStatistics();
        if (fd < 0)
        {
            return null;
        }

        Kvm.StatsHeader header;
        if (Kvm.Pread(fd, &header, (nuint)sizeof(Kvm.StatsHeader), 0) != sizeof(Kvm.StatsHeader))
        {
            _ = Linux.Close(fd);
            return null;
        }

        var names = new List<string>();
        var offsets = new List<uint>();
        int size = sizeof(Kvm.StatsDesc) + (int)header.NameSize;
        byte[] descriptors = new byte[size * (int)header.NumDesc];
        fixed (byte* p = descriptors)
        {
            if (Kvm.Pread(fd, p, (nuint)descriptors.Length, header.DescOffset) != descriptors.Length)
            {
                _ = Linux.Close(fd);
                return null;
            }

            for (int i = 0; i < header.NumDesc; i++)
            {
                var descriptor = (Kvm.StatsDesc*)(p + (i * size));
                if ((descriptor->Flags & TypeMask) == Cumulative && descriptor->Size == 1)
                {
                    ReadOnlySpan<byte> name = new(descriptor + 1, (int)header.NameSize);
                    int end = name.IndexOf((byte)0);
                    names.Add(Encoding.ASCII.GetString(end < 0 ? name : name[..end]));
                    offsets.Add(descriptor->Offset);
                }
            }
        }

        return new KvmStatistics(fd, header.DataOffset, [.. names], [.. offsets]);
    }

    /// <summary>Reads all counters in one call.</summary>
    public void Read(Span<ulong> values)
    {
        fixed (byte* p = _buffer)
        {
            if (Kvm.Pread(_fd, p, (nuint)_buffer.Length, _start) != _buffer.Length)
            {
                values.Clear();
                return;
            }

            for (int i = 0; i < _offsets.Length; i++)
            {
                values[i] = *(ulong*)(p + _offsets[i]);
            }
        }
    }

    /// <inheritdoc/>
    public void Dispose() => _ = Linux.Close(_fd);
}
