using System.Runtime.CompilerServices;

namespace VirtBench.Strategies.Simulation;

/// <summary>Sized access to registers, memory and flags; T is byte, ushort, uint or ulong and every test on it folds.</summary>
internal static unsafe class Operand
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Get<T>(void* p)
        where T : unmanaged =>
        sizeof(T) switch
        {
            1 => *(byte*)p,
            2 => *(ushort*)p,
            4 => *(uint*)p,
            _ => *(ulong*)p,
        };

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Put<T>(void* p, ulong value)
        where T : unmanaged
    {
        switch (sizeof(T))
        {
            case 1:
                *(byte*)p = (byte)value;
                break;
            case 2:
                *(ushort*)p = (ushort)value;
                break;
            case 4:
                *(uint*)p = (uint)value;
                break;
            default:
                *(ulong*)p = value;
                break;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Reg<T>(Machine* m, ushort offset)
        where T : unmanaged => Get<T>((byte*)m + offset);

    /// <summary>Writes a register: a 32-bit write clears the upper half.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void SetReg<T>(Machine* m, ushort offset, ulong value)
        where T : unmanaged
    {
        if (sizeof(T) == 4)
        {
            *(ulong*)((byte*)m + offset) = (uint)value;
        }
        else
        {
            Put<T>((byte*)m + offset, value);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Truncate<T>(ulong value)
        where T : unmanaged =>
        sizeof(T) switch
        {
            1 => (byte)value,
            2 => (ushort)value,
            4 => (uint)value,
            _ => value,
        };

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong SignExtend<T>(ulong value)
        where T : unmanaged =>
        sizeof(T) switch
        {
            1 => (ulong)(sbyte)value,
            2 => (ulong)(short)value,
            4 => (ulong)(int)value,
            _ => value,
        };

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Address(Machine* m, Op* op) =>
        *(ulong*)((byte*)m + op->Base) + (*(ulong*)((byte*)m + op->Index) << op->Scale) + op->Displacement;

    /// <summary>Flags of an addition or subtraction from its result and the vector of carries out of each bit.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void SetFlags<T>(Machine* m, ulong result, ulong carries)
        where T : unmanaged
    {
        ulong s = SignExtend<T>(result);
        m->ZeroResult = s;
        m->SignResult = s;
        m->Carries = sizeof(T) == 8 ? carries : (carries << (64 - (8 * sizeof(T)))) | (carries & 8);
    }

    /// <summary>ZF, SF and PF of a result; CF, OF and AF clear, as after AND.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void SetLogicFlags<T>(Machine* m, ulong result)
        where T : unmanaged
    {
        ulong s = SignExtend<T>(result);
        m->ZeroResult = s;
        m->SignResult = s;
        m->Carries = 0;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static TlbEntry* EntryOf(TlbEntry* tlb, ulong address) =>
        (TlbEntry*)((byte*)tlb + ((address >> 8) & ((TlbEntry.Count - 1) << 4)));

    /// <summary>
    /// Host address of a guest operand for reading, or null after a fault has been noted. One comparison covers presence and
    /// page crossing: the last byte's page must have the tag of the entry that the first byte selects.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static byte* ForRead(Machine* m, ulong address, int size)
    {
        TlbEntry* entry = EntryOf(m->ReadTlb, address);
        return ((address + (ulong)(size - 1)) & ~0xFFFUL) == entry->Tag
            ? (byte*)(address + entry->Addend)
            : SlowPath.ForRead(m, address, size);
    }

    /// <summary>As <see cref="ForRead"/>, for writing. What is written to the bounce buffer must be committed.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static byte* ForWrite(Machine* m, ulong address, int size)
    {
        TlbEntry* entry = EntryOf(m->WriteTlb, address);
        return ((address + (ulong)(size - 1)) & ~0xFFFUL) == entry->Tag
            ? (byte*)(address + entry->Addend)
            : SlowPath.ForWrite(m, address, size);
    }

    /// <summary>Carries a page-crossing write from the bounce buffer to its two pages.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Commit(Machine* m, byte* written)
    {
        if (written == m->Bounce)
        {
            SlowPath.CommitBounce(m);
        }
    }

    /// <summary>Stores a value; false after a fault has been noted.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Store<T>(Machine* m, ulong address, ulong value)
        where T : unmanaged
    {
        TlbEntry* entry = EntryOf(m->WriteTlb, address);
        if (((address + (ulong)(sizeof(T) - 1)) & ~0xFFFUL) == entry->Tag)
        {
            Put<T>((byte*)(address + entry->Addend), value);
            return true;
        }

        return SlowPath.Store(m, address, value, sizeof(T));
    }
}
