using System.Runtime.InteropServices;

namespace VirtBench.Strategies.Tests.Simulation;

/// <summary>
/// Debian's libunicorn2 as an oracle: 64-bit x86, memory of its own. Constants are those of unicorn/unicorn.h and
/// unicorn/x86.h of version 2.0.
/// </summary>
internal sealed unsafe partial class Unicorn : IDisposable
{
    private const string Library = "libunicorn.so.2";
    private const int ArchX86 = 4;
    private const int Mode64 = 1 << 3;
    private const int ProtAll = 7;
    private const int RegEflags = 25;
    private const int RegRip = 41;
    private const int RegXmm0 = 122;

    // By encoding order.
    private static readonly int[] Gpr = [35, 38, 40, 37, 44, 36, 43, 39, 106, 107, 108, 109, 110, 111, 112, 113];

    private nint _engine;

    private Unicorn(nint engine) => _engine = engine;

    /// <summary>Why there is no oracle here; null when there is.</summary>
    public static string? UnavailableReason { get; } = Probe();

    private static string? Probe()
    {
        if (!NativeLibrary.TryLoad(Library, out nint handle))
        {
            return "libunicorn.so.2 is not installed (Debian: apt-get install libunicorn2)";
        }

        NativeLibrary.Free(handle);
        return null;
    }

    public static Unicorn Create()
    {
        nint engine;
        Check(Open(ArchX86, Mode64, &engine));
        return new Unicorn(engine);
    }

    public void Map(ulong address, ulong size) => Check(MemMap(_engine, address, (nuint)size, ProtAll));

    public void Write(ulong address, ReadOnlySpan<byte> bytes)
    {
        fixed (byte* p = bytes)
        {
            Check(MemWrite(_engine, address, p, (nuint)bytes.Length));
        }
    }

    public void Read(ulong address, Span<byte> bytes)
    {
        fixed (byte* p = bytes)
        {
            Check(MemRead(_engine, address, p, (nuint)bytes.Length));
        }
    }

    public ulong this[int gpr]
    {
        get => ReadRegister(Gpr[gpr]);
        set => WriteRegister(Gpr[gpr], value);
    }

    public ulong Rflags
    {
        get => ReadRegister(RegEflags);
        set => WriteRegister(RegEflags, value);
    }

    public ulong Rip => ReadRegister(RegRip);

    public UInt128 Xmm(int index)
    {
        UInt128 value;
        Check(RegRead(_engine, RegXmm0 + index, &value));
        return value;
    }

    public void SetXmm(int index, UInt128 value) => Check(RegWrite(_engine, RegXmm0 + index, &value));

    /// <summary>Runs up to an address; 0 or unicorn's error number.</summary>
    public int Run(ulong begin, ulong until) => EmuStart(_engine, begin, until, 0, 0);

    private ulong ReadRegister(int register)
    {
        ulong value = 0;
        Check(RegRead(_engine, register, &value));
        return value;
    }

    private void WriteRegister(int register, ulong value) => Check(RegWrite(_engine, register, &value));

    private static void Check(int error)
    {
        if (error != 0)
        {
            throw new InvalidOperationException($"unicorn error {error}");
        }
    }

    public void Dispose()
    {
        if (_engine != 0)
        {
            _ = Close(_engine);
            _engine = 0;
        }
    }

    [LibraryImport(Library, EntryPoint = "uc_open")]
    private static partial int Open(int arch, int mode, nint* engine);

    [LibraryImport(Library, EntryPoint = "uc_close")]
    private static partial int Close(nint engine);

    [LibraryImport(Library, EntryPoint = "uc_mem_map")]
    private static partial int MemMap(nint engine, ulong address, nuint size, uint protection);

    [LibraryImport(Library, EntryPoint = "uc_mem_write")]
    private static partial int MemWrite(nint engine, ulong address, byte* bytes, nuint size);

    [LibraryImport(Library, EntryPoint = "uc_mem_read")]
    private static partial int MemRead(nint engine, ulong address, byte* bytes, nuint size);

    [LibraryImport(Library, EntryPoint = "uc_reg_read")]
    private static partial int RegRead(nint engine, int register, void* value);

    [LibraryImport(Library, EntryPoint = "uc_reg_write")]
    private static partial int RegWrite(nint engine, int register, void* value);

    [LibraryImport(Library, EntryPoint = "uc_emu_start")]
    private static partial int EmuStart(nint engine, ulong begin, ulong until, ulong timeout, nuint count);
}
