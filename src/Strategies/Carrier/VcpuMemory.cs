using System.ComponentModel;
using System.Runtime.Versioning;
using VirtBench.Strategies.Native;

namespace VirtBench.Strategies.Carrier;

/// <summary>
/// The memory that the VMM and all carriers of one vCPU share: the stub, the register file, and a control area for each carrier. The register
/// file holds the guest's frame, so that moving a vCPU to another carrier copies nothing but FS and GS base.
/// </summary>
[SupportedOSPlatform("linux")]
internal sealed unsafe class VcpuMemory : IDisposable
{
    private readonly byte* _base;
    private readonly long _size;
    private bool _disposed;

    /// <summary>Makes the memory and, in it, the frame that the first entry returns from.</summary>
    /// <param name="codeCacheSize">Bytes of a code cache for each carrier; 0 where nothing is translated.</param>
    /// <exception cref="Win32Exception">The kernel refuses.</exception>
    public VcpuMemory(int codeCacheSize = 0)
    {
        CodeCacheSize = codeCacheSize;
        _size =
            codeCacheSize == 0
                ? CarrierLayout.ControlFileSize
                : CarrierLayout.TranslationFileOffset(CarrierLayout.MaximumCarriers, codeCacheSize);
        FileDescriptor = Linux.CreateSealedMemfd("virtbench-control", _size);
        try
        {
            _base = Linux.MapSharedMemory(FileDescriptor, _size, "the carriers' control memory");
        }
        catch
        {
            _ = Linux.Close(FileDescriptor);
            throw;
        }

        CarrierStub.Instance.Code.CopyTo(new Span<byte>(_base, (int)CarrierLayout.StubSize));
        BuildFirstFrame();
        byte* fpu = RegisterFile + CarrierLayout.FirstFpuOffset;
        *(ushort*)fpu = 0x37F;
        *(uint*)(fpu + FpuFrame.Mxcsr) = 0x1F80;
    }

    /// <summary>The memfd.</summary>
    public int FileDescriptor { get; }

    /// <summary>Bytes of each carrier's code cache; 0 where nothing is translated.</summary>
    public int CodeCacheSize { get; }

    /// <summary>The lookup table of a carrier, which it can only read.</summary>
    public ulong* LookupTable(int slot) => (ulong*)(_base + CarrierLayout.TranslationFileOffset(slot, CodeCacheSize));

    /// <summary>The code cache of a carrier, which it can only read and execute.</summary>
    public byte* CodeCache(int slot) => (byte*)LookupTable(slot) + CarrierLayout.LookupTableSize;

    /// <summary>The register file.</summary>
    public byte* RegisterFile => _base + CarrierLayout.RegisterFileFileOffset;

    /// <summary>The frame that the first entry returns from.</summary>
    public SignalContext* FirstFrame => (SignalContext*)(RegisterFile + CarrierLayout.FirstFrameOffset);

    /// <summary>The control area of one carrier.</summary>
    public byte* ControlArea(int slot) =>
        _base + CarrierLayout.ControlFileOffset + (slot * (long)CarrierLayout.ControlSize);

    /// <summary>Where the VMM sees what a carrier has at this address of the register file; the address is a guest's word.</summary>
    /// <returns>Null when not all of it lies where frames are put that the VMM shares.</returns>
    public byte* Find(ulong address, ulong size)
    {
        ulong offset = address - CarrierLayout.RegisterFile;
        bool handMade = offset < CarrierLayout.SignalStackOffset && size <= CarrierLayout.SignalStackOffset - offset;
        bool onStack =
            offset - CarrierLayout.OwnStackEnd < CarrierLayout.FrameSpace
            && size <= CarrierLayout.RegisterFileSize - offset;
        return handMade || onStack ? RegisterFile + offset : null;
    }

    /// <summary>The address in every carrier of what the VMM sees here.</summary>
    public ulong AddressOf(void* shared) => CarrierLayout.RegisterFile + (ulong)((byte*)shared - RegisterFile);

    /// <summary>
    /// Makes the frame that an entry returns from when there is none of the kernel's: at first, and after a callout. Leaves the general registers and the x87 and SSE state
    /// to the caller.
    /// </summary>
    public void BuildFirstFrame()
    {
        SignalContext* context = FirstFrame;
        context->Flags = 6; // UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS
        context->StackPointer = CarrierLayout.RegisterFile + CarrierLayout.SignalStackOffset;
        context->StackSize = CarrierLayout.RegisterFileSize - CarrierLayout.SignalStackOffset;
        context->Eflags = 0x202;
        context->Cs = CarrierLayout.UserCodeSelector;
        context->Ss = CarrierLayout.UserDataSelector;
        context->FpuState = CarrierLayout.RegisterFile + CarrierLayout.FirstFpuOffset;

        context->SignalMask = 0;

        byte* fpu = RegisterFile + CarrierLayout.FirstFpuOffset;
        *(uint*)(fpu + FpuFrame.FeaturesLow) = FpuFrame.X87AndSse;
        *(uint*)(fpu + FpuFrame.FeaturesHigh) = 0;
        new Span<ulong>(fpu + FpuFrame.LegacySize, (FpuFrame.HeaderEnd - FpuFrame.LegacySize) / sizeof(ulong)).Clear();
        *(ulong*)(fpu + FpuFrame.LegacySize) = FpuFrame.X87AndSse; // XSTATE_BV
    }

    /// <summary>Gives the memory back. Carriers that map it keep it until they end.</summary>
    public void Dispose()
    {
        if (!_disposed)
        {
            _disposed = true;
            _ = Linux.Munmap((nint)_base, (nuint)_size);
            _ = Linux.Close(FileDescriptor);
        }
    }
}
