using System.Buffers.Binary;
using System.Runtime.Intrinsics.X86;
using System.Text;

namespace VirtBench.Measurement;

/// <summary>What the host's CPUID says (Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E). Null off x86.</summary>
internal sealed record Cpuid(
    string Vendor,
    string? Brand,
    int Family,
    int Model,
    int Stepping,
    bool InvariantTsc,
    bool Hypervisor,
    string? HypervisorVendor
)
{
    public static Cpuid? Read()
    {
        if (!X86Base.IsSupported)
        {
            return null;
        }

        (_, int b, int c, int d) = X86Base.CpuId(0, 0);
        string vendor = Text(b, d, c)!;
        (int version, _, int features, _) = X86Base.CpuId(1, 0);
        (int family, int model, int stepping) = Decode(version);
        int extended = X86Base.CpuId(unchecked((int)0x8000_0000), 0).Eax;
        bool invariant =
            AtLeast(extended, 0x8000_0007) && (X86Base.CpuId(unchecked((int)0x8000_0007), 0).Edx & (1 << 8)) != 0;
        bool hypervisor = features < 0; // ECX bit 31
        string? signature = null;
        if (hypervisor)
        {
            (_, b, c, d) = X86Base.CpuId(0x4000_0000, 0);
            signature = Text(b, c, d);
        }

        return new Cpuid(
            vendor,
            AtLeast(extended, 0x8000_0004) ? ReadBrand() : null,
            family,
            model,
            stepping,
            invariant,
            hypervisor,
            signature
        );
    }

    /// <summary>Family, model and stepping from leaf 1's EAX, extended parts included.</summary>
    internal static (int Family, int Model, int Stepping) Decode(int version)
    {
        int family = (version >> 8) & 0xF;
        int model = (version >> 4) & 0xF;
        if (family is 6 or 15)
        {
            model |= (version >> 12) & 0xF0;
        }

        if (family == 15)
        {
            family += (version >> 20) & 0xFF;
        }

        return (family, model, version & 0xF);
    }

    private static bool AtLeast(int highest, uint leaf) => (uint)highest >= leaf;

    private static string? ReadBrand()
    {
        var brand = new StringBuilder();
        for (uint leaf = 0x8000_0002; leaf <= 0x8000_0004; leaf++)
        {
            (int a, int b, int c, int d) = X86Base.CpuId(unchecked((int)leaf), 0);
            brand.Append(Text(a, b, c, d));
        }

        string text = brand.ToString().Trim();
        return text.Length == 0 ? null : text;
    }

    private static string? Text(params ReadOnlySpan<int> registers)
    {
        Span<byte> bytes = stackalloc byte[16];
        for (int i = 0; i < registers.Length; i++)
        {
            BinaryPrimitives.WriteInt32LittleEndian(bytes[(i * 4)..], registers[i]);
        }

        ReadOnlySpan<byte> used = bytes[..(registers.Length * 4)];
        int end = used.IndexOf((byte)0);
        string text = Encoding.ASCII.GetString(end < 0 ? used : used[..end]);
        return text.Length == 0 ? null : text;
    }
}
