using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;

namespace VirtBench.Strategies.Simulation;

/// <summary>What handlers call when the fast way does not do: TLB misses, unlinked blocks, exits.</summary>
internal static unsafe class SlowPath
{
    private static SimulatedEngine Engine(Machine* m) =>
        Unsafe.As<SimulatedEngine>(GCHandle.FromIntPtr(m->EngineHandle).Target!);

    [MethodImpl(MethodImplOptions.NoInlining)]
    public static byte* ForRead(Machine* m, ulong address, int size) => Engine(m).ResolveRead(address, size);

    [MethodImpl(MethodImplOptions.NoInlining)]
    public static byte* ForWrite(Machine* m, ulong address, int size) => Engine(m).ResolveWrite(address, size);

    [MethodImpl(MethodImplOptions.NoInlining)]
    public static bool Store(Machine* m, ulong address, ulong value, int size)
    {
        byte* p = Engine(m).ResolveWrite(address, size);
        if (p is null)
        {
            return false;
        }

        Unsafe.CopyBlockUnaligned(p, &value, (uint)size);
        Operand.Commit(m, p);
        return true;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    public static void CommitBounce(Machine* m)
    {
        Unsafe.CopyBlockUnaligned(m->BounceFirst, m->Bounce, (uint)m->BounceFirstLength);
        Unsafe.CopyBlockUnaligned(m->BounceSecond, m->Bounce + m->BounceFirstLength, (uint)m->BounceSecondLength);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    public static Op* LinkTaken(Machine* m, Links* links)
    {
        SimulatedEngine engine = Engine(m);
        ulong generation = engine.Blocks.Generation;
        Op* target = Jump(m, links->TakenRip);
        // A full arena is emptied by the look-up: then these links are gone.
        if (target is not null && generation == engine.Blocks.Generation)
        {
            links->Taken = target;
            links->TakenEpoch = engine.Epoch;
            engine.Linked();
        }

        return target;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    public static Op* LinkNotTaken(Machine* m, Links* links)
    {
        SimulatedEngine engine = Engine(m);
        ulong generation = engine.Blocks.Generation;
        Op* target = Jump(m, links->NotTakenRip);
        if (target is not null && generation == engine.Blocks.Generation)
        {
            links->NotTaken = target;
            links->NotTakenEpoch = engine.Epoch;
            engine.Linked();
        }

        return target;
    }

    /// <summary>
    /// Goes on at an address, unless the guest is to be left here or it cannot be fetched from.
    /// </summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public static Op* Jump(Machine* m, ulong target)
    {
        m->Rip = target;
        return IsWanted(m, m->Cycles) ? null : Find(m, target);
    }

    /// <summary>As <see cref="Jump"/>, of a target that the cache of indirect jumps does not have.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public static Op* JumpIndirect(Machine* m, ulong target)
    {
        Op* op = Jump(m, target);
        if (op is not null)
        {
            Engine(m).MissedLookup();
        }

        return op;
    }

    /// <summary>As <see cref="Jump"/> for an entry, which has to get on though the deadline may be over.</summary>
    public static Op* Start(Machine* m)
    {
        if (Volatile.Read(ref m->KickRequested) != 0)
        {
            m->Exit.Reason = (byte)VmExitReason.Interrupted;
            return null;
        }

        return Find(m, m->Rip);
    }

    /// <summary>Whether the guest is to be left after what it has just done, at this number of cycles; notes why.</summary>
    private static bool IsWanted(Machine* m, ulong cycles)
    {
        if (m->Stepping != 0)
        {
            m->Exit.Reason = (byte)VmExitReason.Stepped;
            return true;
        }

        bool due = cycles >= m->Deadline;
        if (!due && Volatile.Read(ref m->KickRequested) == 0)
        {
            return false;
        }

        m->Exit.Reason = (byte)VmExitReason.Interrupted;
        m->Exit.Due = due ? (byte)1 : (byte)0;
        return true;
    }

    private static Op* Find(Machine* m, ulong target)
    {
        SimulatedEngine engine = Engine(m);
        Op* op = engine.Blocks.Find(target);
        if (op is not null)
        {
            JumpEntry* entry = m->JumpCache + ((target ^ (target >> 12)) & (JumpEntry.Count - 1));
            entry->Rip = target;
            entry->Epoch = engine.Epoch;
            entry->Target = op;
        }

        return op;
    }

    /// <summary>Handler that replaces those of a block whose code has been overwritten.</summary>
    public static Op* Stale(Machine* m, Op* op)
    {
        m->Cycles += op->Before;
        m->Shadow = 0; // an instruction in a shadow that has overwritten what follows it is over
        return Jump(m, op->Rip);
    }

    private static Op* Leave(Machine* m, Op* op)
    {
        m->Rip = op->Rip;
        m->Cycles += op->Before;
        return null;
    }

    /// <summary>Leaves before the op for the reason that has been noted.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public static Op* Fault(Machine* m, Op* op) => Leave(m, op);

    /// <summary>
    /// Between two iterations of a string instruction: goes on with it, or leaves. An op whose code has been overwritten, by
    /// itself, is looked up again.
    /// </summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public static bool BreaksOff(Machine* m, Op* op, out Op* next)
    {
        if (IsWanted(m, m->Cycles + op->Before))
        {
            next = Leave(m, op);
            return true;
        }

        next = null;
        if (op->Length == 0)
        {
            next = Stale(m, op);
            return true;
        }

        return false;
    }

    /// <summary>Goes on behind the op in another way than blocks do: RFLAGS.TF has been set.</summary>
    public static Op* Restart(Machine* m, Op* op)
    {
        m->Exit.Restart = 1;
        m->Rip = op->NextRip;
        m->Cycles += op->Before + op->Cost;
        return null;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    public static Op* Raise(Machine* m, Op* op, byte vector)
    {
        m->Exit.Reason = (byte)VmExitReason.Exception;
        m->Exit.Vector = vector;
        m->Exit.ErrorCode = 0;
        return Leave(m, op);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    public static Op* GeneralProtection(Machine* m, Op* op) => Raise(m, op, Vector.GeneralProtection);

    [MethodImpl(MethodImplOptions.NoInlining)]
    public static Op* DivideError(Machine* m, Op* op) => Raise(m, op, Vector.DivideError);

    public static Op* InvalidOpcode(Machine* m, Op* op) => Raise(m, op, Vector.InvalidOpcode);

    /// <summary>The instruction would fault with #GP in ring 3: the core takes over.</summary>
    public static Op* Privileged(Machine* m, Op* op)
    {
        m->Exit.Reason = (byte)VmExitReason.PrivilegedInstruction;
        return Leave(m, op);
    }

    /// <summary>Ends the guest with a message about the instruction.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public static Op* Fail(Machine* m, Op* op, string why)
    {
        Engine(m).Fail(op->Rip, why);
        return Leave(m, op);
    }

    /// <summary>Copies the x87 part of the FXSAVE image, bytes 0–23 and 32–159, from the core's.</summary>
    public static void ReadX87(Machine* m, byte* image)
    {
        byte* x87 = Engine(m).X87;
        Unsafe.CopyBlock(image, x87, 24);
        Unsafe.CopyBlock(image + 32, x87 + 32, 128);
    }

    /// <summary>Undoes <see cref="ReadX87"/>.</summary>
    public static void WriteX87(Machine* m, byte* image)
    {
        byte* x87 = Engine(m).X87;
        Unsafe.CopyBlock(x87, image, 24);
        Unsafe.CopyBlock(x87 + 32, image + 32, 128);
    }

    public static Op* Unsupported(Machine* m, Op* op) => Fail(m, op, "which the simulated x86-64-v1 CPU does not have");
}
