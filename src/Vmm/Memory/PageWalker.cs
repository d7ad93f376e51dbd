using System.Runtime.CompilerServices;
using VirtBench.Vmm.Cpu;

namespace VirtBench.Vmm.Memory;

/// <summary>What an access wants to do with a page.</summary>
[Flags]
public enum PageAccess : byte
{
    /// <summary>Read as data.</summary>
    Read = 1,

    /// <summary>Write; implies nothing about reading.</summary>
    Write = 2,

    /// <summary>Fetch an instruction.</summary>
    Execute = 4,

    /// <summary>The access is made with user privilege (CPL 3).</summary>
    User = 8,
}

/// <summary>Bits of a page-table entry (Intel SDM vol. 3A, tables 4-15 to 4-20).</summary>
public static class Pte
{
    /// <summary>Present.</summary>
    public const ulong Present = 1UL << 0;

    /// <summary>Writable.</summary>
    public const ulong Writable = 1UL << 1;

    /// <summary>User-accessible.</summary>
    public const ulong User = 1UL << 2;

    /// <summary>Accessed: set by the walker when the entry is used.</summary>
    public const ulong Accessed = 1UL << 5;

    /// <summary>Dirty: set by the walker in the leaf on a write.</summary>
    public const ulong Dirty = 1UL << 6;

    /// <summary>Page size: a leaf at level 2 (2 MiB) or 3 (1 GiB).</summary>
    public const ulong Large = 1UL << 7;

    /// <summary>Global: survives a CR3 write when CR4.PGE is set.</summary>
    public const ulong Global = 1UL << 8;

    /// <summary>No execute (with EFER.NXE; reserved otherwise).</summary>
    public const ulong NoExecute = 1UL << 63;

    /// <summary>Bits of the physical address in an entry: 12–51.</summary>
    public const ulong AddressMask = 0x000F_FFFF_FFFF_F000;
}

/// <summary>Bits of the page-fault error code (Intel SDM vol. 3A, section 4.7).</summary>
public static class PageFaultError
{
    /// <summary>The page was present: a protection violation.</summary>
    public const uint Protection = 1;

    /// <summary>The access was a write.</summary>
    public const uint Write = 2;

    /// <summary>The access came from CPL 3.</summary>
    public const uint User = 4;

    /// <summary>A reserved bit was set in an entry.</summary>
    public const uint Reserved = 8;

    /// <summary>The access was an instruction fetch (reported with NX paging only).</summary>
    public const uint Fetch = 16;
}

/// <summary>The page walker's verdict on one access.</summary>
/// <param name="Fault">True when the architecture raises #PF; then only <paramref name="ErrorCode"/> counts.</param>
/// <param name="ErrorCode">Error code of the fault.</param>
/// <param name="PhysicalAddress">Guest-physical address of the byte accessed; need not be RAM.</param>
/// <param name="PageShift">12, 21 or 30: the size of the guest's page.</param>
/// <param name="Permissions">What the tables allow: Write, Execute and User bits over Read. Write ignores CR0.WP.</param>
/// <param name="Accessed">The Accessed bits of every entry on the way, together, before this access.</param>
/// <param name="Dirty">The leaf's Dirty bit after this access.</param>
/// <param name="Global">The leaf is global.</param>
public readonly record struct Translation(
    bool Fault,
    uint ErrorCode,
    ulong PhysicalAddress,
    byte PageShift,
    PageAccess Permissions,
    bool Accessed,
    bool Dirty,
    bool Global
);

/// <summary>
/// The 4-level page walk of long mode with the checks that hardware makes (Intel SDM vol. 3A, sections 4.5 to 4.8; SMEP,
/// SMAP, protection keys and 5 levels are not in the platform's CPUID) and its Accessed and Dirty updates.
/// </summary>
public static unsafe class PageWalker
{
    /// <summary>Physical-address width that CPUID leaf 0x80000008 reports; entry bits from here to 51 are reserved.</summary>
    public const int PhysicalAddressBits = 40;

    private const ulong ReservedAddress = Pte.AddressMask & ~((1UL << PhysicalAddressBits) - 1);

    /// <summary>True when bits 63–47 are equal (48-bit linear addresses).</summary>
    public static bool IsCanonical(ulong address) => (long)(address << 16) >> 16 == (long)address;

    /// <summary>
    /// Translates one address for one access and, when it succeeds, sets Accessed on the way and Dirty on a write. A table
    /// that lies outside RAM reads as all ones, as the platform says of any address without RAM, and so faults with a
    /// reserved bit.
    /// </summary>
    /// <param name="cpu">Supplies CR0.WP, CR3, CR4 and EFER.NXE.</param>
    /// <param name="memory">Guest RAM, where the tables are.</param>
    /// <param name="address">Linear address; the caller has checked that it is canonical.</param>
    /// <param name="access">Read, Write or Execute, with User for CPL 3.</param>
    /// <param name="commit">False to look without touching Accessed and Dirty.</param>
    public static Translation Walk(
        VirtualCpu cpu,
        GuestMemory memory,
        ulong address,
        PageAccess access,
        bool commit = true
    )
    {
        bool nxe = (cpu.Efer & Efer.Nxe) != 0;
        bool write = (access & PageAccess.Write) != 0;
        bool fetch = (access & PageAccess.Execute) != 0;
        bool user = (access & PageAccess.User) != 0;
        uint code =
            (write ? PageFaultError.Write : 0)
            | (user ? PageFaultError.User : 0)
            | (fetch && nxe ? PageFaultError.Fetch : 0);

        ulong table = cpu.Cr3 & Pte.AddressMask & ~ReservedAddress;
        ulong rights = Pte.Writable | Pte.User;
        ulong noExecute = 0;
        ulong accessed = Pte.Accessed;
        ulong* path0 = null,
            path1 = null,
            path2 = null,
            leaf;
        ulong leafValue;
        int shift = 39;
        for (; ; shift -= 9)
        {
            ulong slot = table + (((address >> shift) & 511) * 8);
            bool inRam = memory.Contains(slot, 8);
            leaf = inRam ? (ulong*)memory.Touch(slot) : null;
            ulong entry = leafValue = inRam ? Volatile.Read(ref *leaf) : ulong.MaxValue;
            if ((entry & Pte.Present) == 0)
            {
                return FaultWith(code);
            }

            ulong reserved = ReservedAddress | (nxe ? 0 : Pte.NoExecute);
            bool large = (entry & Pte.Large) != 0;
            if (shift == 39)
            {
                reserved |= Pte.Large;
            }
            else if (large && shift > 12)
            {
                reserved |= ((1UL << shift) - 1) & ~0x1FFFUL; // bit 12 is PAT in a large leaf
            }

            if ((entry & reserved) != 0)
            {
                return FaultWith(code | PageFaultError.Protection | PageFaultError.Reserved);
            }

            rights &= entry;
            accessed &= entry;
            noExecute |= entry & Pte.NoExecute;
            if (shift == 12 || (shift < 39 && large))
            {
                break;
            }

            switch (shift)
            {
                case 39:
                    path0 = leaf;
                    break;
                case 30:
                    path1 = leaf;
                    break;
                default:
                    path2 = leaf;
                    break;
            }

            table = entry & Pte.AddressMask;
        }

        bool userPage = (rights & Pte.User) != 0;
        bool writable = (rights & Pte.Writable) != 0;
        bool denied =
            (user && !userPage)
            || (write && !writable && (user || (cpu.Cr0 & Cpu.Cr0.Wp) != 0))
            || (fetch && noExecute != 0);
        if (denied)
        {
            return FaultWith(code | PageFaultError.Protection);
        }

        if (commit)
        {
            SetBits(memory, path0, Pte.Accessed);
            SetBits(memory, path1, Pte.Accessed);
            SetBits(memory, path2, Pte.Accessed);
            SetBits(memory, leaf, Pte.Accessed | (write ? Pte.Dirty : 0));
        }

        ulong mask = (1UL << shift) - 1;
        return new Translation(
            Fault: false,
            ErrorCode: 0,
            PhysicalAddress: (leafValue & Pte.AddressMask & ~mask) | (address & mask),
            PageShift: (byte)shift,
            Permissions: PageAccess.Read
                | (writable ? PageAccess.Write : 0)
                | (noExecute == 0 ? PageAccess.Execute : 0)
                | (userPage ? PageAccess.User : 0),
            Accessed: accessed != 0,
            Dirty: (leafValue & Pte.Dirty) != 0 || (write && commit),
            Global: (leafValue & Pte.Global) != 0
        );
    }

    private static Translation FaultWith(uint code) => new(true, code, 0, 0, 0, false, false, false);

    // Tables outside RAM never get here: they fault. The update is atomic because guest code may run in another process.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void SetBits(GuestMemory memory, ulong* entry, ulong bits)
    {
        if (entry is not null && (*entry & bits) != bits)
        {
            memory.BeforeWrite((ulong)((byte*)entry - memory.Base), sizeof(ulong));
            Interlocked.Or(ref *entry, bits);
        }
    }
}
