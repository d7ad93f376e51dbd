#pragma warning disable CA1416 // DirectGuest has asked for Linux
using VirtBench.Strategies.Shadow;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.Tests.DirectExecution;

/// <summary>
/// A guest writes its page tables, executes INVLPG, loads CR3, changes rings, and reads, writes and executes pages; what must come of each
/// access is what the page walker says of a model of the same memory at that moment. After a write to an entry the guest does what the
/// architecture asks of it: INVLPG of the page where only a leaf has changed, a CR3 load otherwise.
/// </summary>
[Collection(CarrierCollection.Name)]
public sealed class CoherenceTests
{
    private const int Roots = 4;
    private const int Directories = 4; // entries of the region's page directory in use
    private const int Frames = 24;
    private const ulong Region = 0x4000_0000;
    private const ulong Data = 0x60_0000; // 2 MiB of data frames, and a second one above
    private const ulong LargePage = 2 << 20;
    private const ulong Page = GuestMemory.PageSize;
    private const ulong ValueOffset = 0x800;
    private const ulong Used = Pte.Present | Pte.Writable | Pte.User;

    private static ulong Root(int i) => CoherenceGuest.Tables + ((ulong)i * 0x1_0000);

    private static ulong Directory(int i) => Root(i) + 0x4000;

    // Each address space has two page tables of its own; two more belong to all.
    private static ulong Table(int root, int i) =>
        i < 2 ? Root(root) + 0x5000 + ((ulong)i * Page) : CoherenceGuest.Tables + 0x8_0000 + ((ulong)i * Page);

    private static void Build(GuestMemory memory)
    {
        for (int root = 0; root < Roots; root++)
        {
            CoherenceGuest.BuildRoot(memory, Root(root), Directory(root));
            for (int i = 0; i < Directories; i++)
            {
                memory.Write(Directory(root) + ((ulong)i * 8), Table(root, i) | Used);
            }
        }

        for (ulong frame = Data; frame < Data + (2 * LargePage); frame += Page)
        {
            byte[] code = [0x90, 0xB8, 0, 0, 0, 0, 0xC3]; // nop; mov eax, the frame's number; ret
            BitConverter.TryWriteBytes(code.AsSpan(2), (uint)(frame / Page));
            memory.Write(frame, code);
            memory.Write(frame + ValueOffset, frame * 3);
        }
    }

    public static TheoryData<ShadowPaging, int, int> Cases
    {
        get
        {
            var cases = new TheoryData<ShadowPaging, int, int>();
            foreach (ShadowPaging policy in Enum.GetValues<ShadowPaging>())
            {
                cases.Add(policy, 1, 16);
                cases.Add(policy, 2, 3);
            }

            return cases;
        }
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void Every_access_ends_as_the_page_walker_says(ShadowPaging policy, int seed, int carriers) =>
        Drive(policy, seed, carriers, accesses: 260_000);

    /// <summary>For the night: <c>-explicit only -method "*Many_seeds*"</c>.</summary>
    [Fact(Explicit = true)]
    public void Many_seeds_of_every_policy()
    {
        for (int seed = 100; seed < 140; seed++)
        {
            Drive(ShadowPaging.Cached, seed, 2 + (seed % 15), 1_000_000);
            Drive(ShadowPaging.Flush, seed, 16, 1_000_000);
        }
    }

    private static void Drive(ShadowPaging policy, int seed, int carriers, int accesses)
    {
        using var guest = new CoherenceGuest(policy, Root(0), carriers, Build);
        using var model = new Model(seed);
        Assert.Null(guest.Run());
        int done = 0;
        while (done < accesses)
        {
            while (!guest.IsFull && done < accesses)
            {
                done += model.Step(guest);
            }

            model.EnterKernel(guest); // where it can hand over
            string? wrong = guest.Run();
            Assert.True(wrong is null, $"{policy}, seed {seed}, {carriers} carriers, before access {done}: {wrong}");
            AssertSameMemory(guest.Memory, model.Memory, $"{policy}, seed {seed}, {carriers} carriers, access {done}");
        }
    }

    // Values, entries, Accessed and Dirty bits.
    private static void AssertSameMemory(GuestMemory guest, GuestMemory model, string when)
    {
        for (int root = 0; root < Roots; root++)
        {
            for (ulong at = Directory(root); at < Root(root) + 0x7000; at += 8)
            {
                AssertSame(at);
            }

            AssertSame(Root(root) + 0x1008); // the directory's own entry
        }

        for (ulong at = Table(0, 2); at < Table(0, 4); at += 8)
        {
            AssertSame(at);
        }

        for (ulong frame = Data; frame < Data + (2 * LargePage); frame += Page)
        {
            AssertSame(frame + ValueOffset);
        }

        void AssertSame(ulong at) =>
            Assert.True(
                guest.Read<ulong>(at) == model.Read<ulong>(at),
                $"{when}: 0x{at:X} is 0x{guest.Read<ulong>(at):X}, not 0x{model.Read<ulong>(at):X}"
            );
    }

    /// <summary>The same memory, and the page walker's verdicts over it.</summary>
    private sealed class Model : IDisposable
    {
        private readonly Random _random;
        private readonly VirtualCpu _cpu = new();
        private int _root;
        private bool _user;

        public Model(int seed)
        {
            _random = new Random(seed);
            Build(Memory);
            _cpu.Cr3 = Root(0);
        }

        public GuestMemory Memory { get; } = new(DirectGuest.RamBytes);

        /// <summary>Adds the next thing that the guest is to do.</summary>
        /// <returns>How many accesses it holds.</returns>
        public int Step(CoherenceGuest guest)
        {
            switch (_random.Next(100))
            {
                case < 3:
                    WriteLeaf(guest);
                    return 0;
                case < 4:
                    WriteUpper(guest);
                    return 0;
                case < 6:
                    EnterKernel(guest);
                    _root = _random.Next(Roots);
                    LoadCr3(guest);
                    return 0;
                case < 8:
                    if (_user)
                    {
                        EnterKernel(guest);
                    }
                    else
                    {
                        _user = true;
                        guest.Add(GuestOperation.EnterUser);
                    }

                    return 0;
                default:
                    return Access(guest, Address(), repeat: 1 + _random.Next(16));
            }
        }

        private ulong Address() =>
            Region + ((ulong)_random.Next(Directories) * LargePage) + ((ulong)_random.Next(Frames) * Page);

        private int Access(CoherenceGuest guest, ulong page, int repeat)
        {
            int made = 0;
            for (int i = 0; i < repeat; i++)
            {
                GuestOperation operation = (GuestOperation)_random.Next(3);
                PageAccess access = (PageAccess)(1 << (int)operation) | (_user ? PageAccess.User : 0);
                ulong address = operation == GuestOperation.Execute ? page : page + ValueOffset;
                Translation t = PageWalker.Walk(_cpu, Memory, address, access, commit: false);
                if (!t.Fault && t.PhysicalAddress - Data >= 2 * LargePage)
                {
                    continue; // a page of 1 GiB shows the guest's own memory too, which the model does not have
                }

                if (t.Fault && _random.Next(4) != 0)
                {
                    continue; // a true fault takes a hundred times as long as an access that succeeds
                }

                t = PageWalker.Walk(_cpu, Memory, address, access);
                made++;
                if (t.Fault)
                {
                    guest.Add(operation, address, 0, t.ErrorCode);
                    continue;
                }

                ulong value;
                if (operation == GuestOperation.Write)
                {
                    value = (ulong)_random.NextInt64();
                    Memory.Write(t.PhysicalAddress, value);
                }
                else
                {
                    value =
                        operation == GuestOperation.Execute
                            ? t.PhysicalAddress / Page
                            : Memory.Read<ulong>(t.PhysicalAddress);
                }

                guest.Add(operation, address, value);
            }

            return made;
        }

        private ulong Flags(ulong always)
        {
            ulong flags = always;
            foreach (ulong bit in (ulong[])[Pte.Present, Pte.Writable, Pte.User, Pte.Accessed, Pte.Dirty])
            {
                flags = _random.Next(8) == 0 ? flags & ~bit : flags;
            }

            return flags | (_random.Next(8) == 0 ? Pte.NoExecute : 0);
        }

        // Of the current address space, so that INVLPG is all that it takes there; others load CR3 before they use it.
        private void WriteLeaf(CoherenceGuest guest)
        {
            EnterKernel(guest);
            ulong address = Address();
            ulong slot = Root(_root);
            for (int shift = 39; shift > 12; shift -= 9)
            {
                ulong entry = Memory.Read<ulong>(slot + (((address >> shift) & 511) * 8));
                if ((entry & Pte.Present) == 0 || (entry & Pte.Large) != 0)
                {
                    return; // no page table there now
                }

                slot = entry & Pte.AddressMask;
            }

            slot += ((address >> 12) & 511) * 8;
            ulong frame = Data + ((ulong)_random.Next(Frames) * Page);
            Store(guest, slot, frame | Flags(Used | Pte.Accessed | Pte.Dirty));
            for (int i = 0; i < Directories; i++)
            {
                // The table may stand behind other entries as well.
                guest.Add(GuestOperation.Invalidate, Region + ((ulong)i * LargePage) + (address & (LargePage - Page)));
            }
        }

        private void WriteUpper(CoherenceGuest guest)
        {
            EnterKernel(guest);
            int i = _random.Next(Directories);
            int root = _random.Next(Roots);
            if (_random.Next(4) == 0)
            {
                ulong pointer = Root(root) + 0x1008;
                bool huge = (Memory.Read<ulong>(pointer) & Pte.Large) != 0;
                Store(guest, pointer, huge ? Directory(root) | Flags(Used) : Flags(Used | Pte.Accessed) | Pte.Large);
            }
            else
            {
                ulong entry =
                    _random.Next(3) == 0
                        ? (Data + ((ulong)_random.Next(2) * LargePage))
                            | Pte.Large
                            | Flags(Used | Pte.Accessed | Pte.Dirty)
                        : Table(root, _random.Next(4)) | Flags(Used | Pte.Accessed);
                Store(guest, Directory(root) + ((ulong)i * 8), entry);
            }

            LoadCr3(guest);
        }

        private void Store(CoherenceGuest guest, ulong slot, ulong value)
        {
            Memory.Write(slot, value);
            guest.Add(_random.Next(2) == 0 ? GuestOperation.Store : GuestOperation.Exchange, slot, value);
        }

        private void LoadCr3(CoherenceGuest guest)
        {
            _cpu.Cr3 = Root(_root);
            guest.Add(GuestOperation.LoadCr3, Root(_root));
        }

        public void EnterKernel(CoherenceGuest guest)
        {
            if (_user)
            {
                _user = false;
                guest.Add(GuestOperation.EnterKernel);
            }
        }

        public void Dispose()
        {
            Memory.Dispose();
            _cpu.Dispose();
        }
    }
}
