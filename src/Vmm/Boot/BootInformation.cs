using System.Runtime.InteropServices;

namespace VirtBench.Vmm.Boot;

/// <summary>
/// The head of the boot information page, which RDI points at on entry. The parameters, 8 bytes each, follow it at
/// <see cref="ParametersOffset"/>. All little endian; guest programs rely on this layout.
/// </summary>
[StructLayout(LayoutKind.Sequential, Pack = 8)]
public struct BootInformation
{
    /// <summary>"VBNCHv1\0" as a little-endian number.</summary>
    public const ulong ExpectedMagic = 0x0031_7648_434E_4256;

    /// <summary>Bit of <see cref="Flags"/>: the paravirtual interface is offered.</summary>
    public const ulong ParavirtualFlag = 1;

    /// <summary>Offset of the first parameter in bytes.</summary>
    public const int ParametersOffset = 7 * 8;

    /// <summary><see cref="ExpectedMagic"/>.</summary>
    public ulong Magic;

    /// <summary>Bytes of RAM.</summary>
    public ulong RamBytes;

    /// <summary>Ticks of the time-stamp counter per second.</summary>
    public ulong TscHz;

    /// <summary>See <see cref="ParavirtualFlag"/>.</summary>
    public ulong Flags;

    /// <summary>Guest-physical address of the hypercall page; 0 when the paravirtual interface is not offered.</summary>
    public ulong HypercallPage;

    /// <summary>Guest-physical address of the shared info page; 0 when the paravirtual interface is not offered.</summary>
    public ulong SharedInfoPage;

    /// <summary>How many parameters follow.</summary>
    public ulong ParameterCount;
}
