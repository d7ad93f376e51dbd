using Iced.Intel;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Paravirtual;

namespace VirtBench.Workloads.Tests;

public sealed class SlottedWorkloadTests
{
    /// <summary>Those that need no disk: the reference machine has none.</summary>
    private static IEnumerable<SlottedWorkload> Slotted =>
        WorkloadCatalog.All.OfType<SlottedWorkload>().Where(workload => workload.Disk is null);

    /// <summary>What stands between the markers besides the units: test, jz, call, ret, nop, operands, high half of the units.</summary>
    private static long OutsideUnits(Workload workload, GuestInterface guestInterface = GuestInterface.Native)
    {
        GuestImage image = workload.Build(new WorkloadOptions(0, workload.DefaultFiller, guestInterface));
        using var machine = ReferenceMachine.Run(image, 0, 1, guestInterface);
        return machine.RegionInstructions - workload.DefaultFiller;
    }

    public static TheoryData<string, int, GuestInterface> EveryDensity()
    {
        var data = new TheoryData<string, int, GuestInterface>();
        foreach (SlottedWorkload workload in Slotted)
        {
            for (int k = 0; k <= workload.MaximumTrapsPerUnit; k++)
            {
                data.Add(workload.Id, k, GuestInterface.Native);
                data.Add(workload.Id, k, GuestInterface.Paravirtual);
            }
        }

        return data;
    }

    public static TheoryData<string, GuestInterface> EachInterface()
    {
        var data = new TheoryData<string, GuestInterface>();
        foreach (Workload workload in Slotted)
        {
            data.Add(workload.Id, GuestInterface.Native);
            data.Add(workload.Id, GuestInterface.Paravirtual);
        }

        return data;
    }

    public static TheoryData<string> Ids() => [.. Slotted.Select(workload => workload.Id)];

    private static Workload Find(string id) => WorkloadCatalog.Find(id)!;

    [Theory]
    [MemberData(nameof(EveryDensity))]
    public void A_unit_executes_exactly_the_filler_and_k_sensitive_operations(
        string id,
        int k,
        GuestInterface guestInterface
    )
    {
        Workload workload = Find(id);
        int filler = 3000 + k; // each another remainder
        GuestImage image = workload.Build(new WorkloadOptions(k, filler, guestInterface));
        using var machine = ReferenceMachine.Run(image, 1, 3, guestInterface);

        int sensitive = workload.Operation(guestInterface).Instruction is null ? 0 : k;
        int instructions = OperationInstructions((SlottedWorkload)workload, k, guestInterface);
        Assert.Equal(3L * sensitive, machine.RegionSensitive);
        Assert.Equal(
            OutsideUnits(workload, guestInterface) + (3L * (filler + instructions)),
            machine.RegionInstructions
        );
        Assert.Equal(3UL, machine.UnitsReported);
        Assert.Equal(Workload.MeasuredRegionId, machine.RegionId);
        Assert.Equal((byte)0, machine.ExitStatus);
    }

    [Theory]
    [MemberData(nameof(EachInterface))]
    public void Every_small_filler_is_exact(string id, GuestInterface guestInterface)
    {
        var workload = (SlottedWorkload)Find(id);
        long outside = OutsideUnits(workload, guestInterface);
        for (int filler = workload.MinimumFiller; filler < workload.MinimumFiller + 150; filler++)
        {
            GuestImage image = workload.Build(new WorkloadOptions(0, filler, guestInterface));
            using var machine = ReferenceMachine.Run(image, 0, 2, guestInterface);
            Assert.Equal(outside + (2 * filler), machine.RegionInstructions);
        }
    }

    [Fact]
    public void The_textbook_unit_is_one_rdtsc_and_forty_other_instructions()
    {
        Workload rdtsc = Find("rdtsc");
        using var one = ReferenceMachine.Run(rdtsc.Build(new WorkloadOptions(1, 40)), 0, 1);
        using var thousand = ReferenceMachine.Run(rdtsc.Build(new WorkloadOptions(1, 40)), 0, 1001);
        Assert.Equal(1000 * 41, thousand.RegionInstructions - one.RegionInstructions);
        Assert.Equal(1000, thousand.RegionSensitive - one.RegionSensitive);
    }

    [Theory]
    [MemberData(nameof(Ids))]
    public void No_units_is_an_empty_region(string id)
    {
        using var machine = ReferenceMachine.Run(Find(id).Build(new WorkloadOptions(4, Find(id).DefaultFiller)), 0, 0);
        Assert.Equal(0, machine.RegionSensitive);
        Assert.Equal(0UL, machine.UnitsReported);
        Assert.Equal((byte)0, machine.ExitStatus);
    }

    [Theory]
    [MemberData(nameof(Ids))]
    public void Nothing_at_or_below_64_KiB_is_touched(string id)
    {
        using var machine = ReferenceMachine.Run(Find(id).Build(new WorkloadOptions(4, Find(id).DefaultFiller)), 1, 1);
        Assert.True(machine.LowestAddress > 0x1_0000, $"0x{machine.LowestAddress:X}");
    }

    [Theory]
    [MemberData(nameof(Ids))]
    public void The_checksum_does_not_depend_on_the_time_stamp_counter(string id)
    {
        GuestImage image = Find(id).Build(new WorkloadOptions(4, Find(id).DefaultFiller));
        using var counting = ReferenceMachine.Run(image, 1, 2);
        using var standing = new ReferenceMachine { TimeStamp = () => 12345 };
        standing.Execute(image, 1, 2);
        Assert.Equal(counting.Result.Checksum, standing.Result.Checksum);
        Assert.Equal(0UL, standing.Result.TscTicks);
        Assert.NotEqual(0UL, counting.Result.TscTicks);
    }

    [Theory]
    [MemberData(nameof(Ids))]
    public void The_checksum_tells_how_many_units_were_done(string id)
    {
        GuestImage image = Find(id).Build(new WorkloadOptions(1, Find(id).DefaultFiller));
        ulong[] checksums =
        [
            .. new (ulong WarmUp, ulong Units)[] { (0, 1), (0, 2), (0, 3), (2, 2) }.Select(run =>
            {
                using var machine = ReferenceMachine.Run(image, run.WarmUp, run.Units);
                return machine.Result.Checksum;
            }),
        ];
        Assert.Equal(checksums.Length, checksums.Distinct().Count());
    }

    [Theory]
    [InlineData("compute", 0)]
    [InlineData("rdtsc", 0)]
    [InlineData("port-io", 1)]
    [InlineData("descriptor-tables", 2)]
    [InlineData("popf", 1)]
    public void The_checksum_is_equal_for_every_k(string id, int from)
    {
        Workload workload = Find(id);
        var checksums = new HashSet<ulong>();
        for (int k = from; k <= workload.MaximumTrapsPerUnit; k++)
        {
            using var machine = ReferenceMachine.Run(workload.Build(new WorkloadOptions(k, 1000)), 1, 2);
            checksums.Add(machine.Result.Checksum);
        }

        Assert.Single(checksums);
    }

    [Fact]
    public void Compute_is_the_same_program_for_every_k()
    {
        Workload compute = Find("compute");
        byte[][] codes =
        [
            .. Enumerable
                .Range(0, compute.MaximumTrapsPerUnit + 1)
                .Select(k => compute.Build(new WorkloadOptions(k, 20_000)).Segments[0].Content.ToArray()),
        ];
        Assert.All(codes, code => Assert.Equal(codes[0], code));
    }

    [Theory]
    [MemberData(nameof(EachInterface))]
    public void Without_the_sensitive_operations_every_k_is_the_same_program(string id, GuestInterface guestInterface)
    {
        var workload = (SlottedWorkload)Find(id);
        List<Code> control = Unit(workload, 0, guestInterface);
        for (int k = 1; k <= workload.MaximumTrapsPerUnit; k++)
        {
            List<Code> unit = Unit(workload, k, guestInterface);
            Assert.Equal(control.Count + OperationInstructions(workload, k, guestInterface), unit.Count);
            int left = 0;
            foreach (Code code in unit)
            {
                left += left < control.Count && code == control[left] ? 1 : 0;
            }

            Assert.Equal(control.Count, left); // the control is what remains when something is taken out
        }
    }

    [Theory]
    [MemberData(nameof(EachInterface))]
    public void Loops_have_the_same_addresses_for_every_k(string id, GuestInterface guestInterface)
    {
        Workload workload = Find(id);
        List<ulong> control = Branches(workload, 0, guestInterface);
        Assert.True(control.Count > workload.MaximumTrapsPerUnit);
        for (int k = 1; k <= workload.MaximumTrapsPerUnit; k++)
        {
            Assert.Equal(control, Branches(workload, k, guestInterface));
        }
    }

    [Theory]
    [InlineData(64)]
    [InlineData(16)]
    public void Sensitive_instructions_are_spread_evenly(int slots)
    {
        for (int k = 1; k <= slots; k++)
        {
            int[] at = [.. Enumerable.Range(0, slots).Where(slot => SlottedWorkload.HoldsSensitive(slot, slots, k))];
            Assert.Equal(k, at.Length);
            Assert.Equal(0, at[0]);
            IEnumerable<int> gaps = at.Zip([.. at.Skip(1), at[0] + slots], (one, next) => next - one);
            Assert.True(gaps.Max() - gaps.Min() <= 1);
        }
    }

    [Theory]
    [MemberData(nameof(Ids))]
    public void What_does_not_fit_is_refused_with_the_limits(string id)
    {
        var workload = (SlottedWorkload)Find(id);
        int filler = workload.DefaultFiller;
        int room = workload.MaximumTrapsPerUnit;
        Assert.Contains(
            $"0 to {room} traps",
            Assert
                .Throws<ArgumentOutOfRangeException>(() => workload.Build(new WorkloadOptions(room + 1, filler)))
                .Message,
            StringComparison.Ordinal
        );
        Assert.Throws<ArgumentOutOfRangeException>(() => workload.Build(new WorkloadOptions(-1, filler)));
        Assert.Contains(
            $"at least {workload.MinimumFiller} instructions",
            Assert
                .Throws<ArgumentOutOfRangeException>(() =>
                    workload.Build(new WorkloadOptions(0, workload.MinimumFiller - 1))
                )
                .Message,
            StringComparison.Ordinal
        );
    }

    [Theory]
    [MemberData(nameof(EachInterface))]
    public void The_unit_fits_the_first_level_instruction_cache(string id, GuestInterface guestInterface)
    {
        Workload workload = Find(id);
        GuestImage image = workload.Build(
            new WorkloadOptions(workload.MaximumTrapsPerUnit, workload.DefaultFiller, guestInterface)
        );
        ImageSegment code = image.Segments.First(segment => segment.Executable);
        Assert.Equal(SlottedWorkload.ImageBase, code.PhysicalAddress);
        Instruction last = Instructions(workload, workload.MaximumTrapsPerUnit, guestInterface)[^1];
        Assert.InRange(last.NextIP - SlottedWorkload.ImageBase, 1UL, 16UL << 10);
        Assert.InRange(code.Content.Length, 1, 64 << 10); // what syscall's ring 3 may touch
    }

    [Theory]
    [MemberData(nameof(Ids))]
    public void The_checksum_is_that_of_the_other_interface(string id)
    {
        Workload workload = Find(id);
        foreach (int k in (int[])[0, 1, 2, 5, 16])
        {
            foreach (int filler in (int[])[((SlottedWorkload)workload).MinimumFiller + 40, 3_001, 20_000])
            {
                ulong[] checksums =
                [
                    .. Enum.GetValues<GuestInterface>()
                        .Select(one =>
                        {
                            GuestImage image = workload.Build(new WorkloadOptions(k, filler, one));
                            using var machine = ReferenceMachine.Run(image, 1, 3, one);
                            return machine.Result.Checksum;
                        }),
                ];
                Assert.Equal(checksums[0], checksums[1]);
            }
        }
    }

    [Theory]
    [InlineData("compute", false, false, false)]
    [InlineData("rdtsc", false, true, false)]
    [InlineData("port-io", true, true, true)]
    [InlineData("cr3-switch", true, false, false)]
    [InlineData("interrupt-flag", true, false, false)]
    [InlineData("syscall", true, false, false)]
    [InlineData("page-fault", true, false, false)]
    [InlineData("pte-update", true, false, false)]
    [InlineData("timer-interrupt", true, true, true)]
    public void Traps_are_expected_where_the_engine_makes_them(
        string id,
        bool privileged,
        bool timeStampCounter,
        bool always
    )
    {
        Workload workload = Find(id);
        Assert.Equal(privileged, workload.NeedsPrivilege);
        Assert.Equal(
            privileged,
            workload.TrapsUnder(GuestInterface.Native, Capabilities(privileged: true, timeStampCounter: false))
        );
        Assert.Equal(
            timeStampCounter,
            workload.TrapsUnder(GuestInterface.Native, Capabilities(privileged: false, timeStampCounter: true))
        );
        Assert.Equal(
            always,
            workload.TrapsUnder(GuestInterface.Native, Capabilities(privileged: false, timeStampCounter: false))
        );
    }

    /// <summary>What every sample of a paravirtual guest is held against.</summary>
    [Theory]
    [InlineData("compute", 0, 0)]
    [InlineData("rdtsc", 0, 0)]
    [InlineData("port-io", 1, 1)]
    [InlineData("cr3-switch", 1, 0)]
    [InlineData("interrupt-flag", 0, 0)]
    [InlineData("popf", 0, 0)]
    [InlineData("cpuid", 1, 0)]
    [InlineData("syscall", 1, 0)]
    [InlineData("page-fault", 1, 0)]
    [InlineData("pte-update", 1, 0)]
    [InlineData("timer-interrupt", 4, 2)]
    [InlineData("mini-os", 1, 0)]
    public void A_paravirtual_operation_takes_so_many_exits_in_ring_3_and_in_a_ring_0_of_its_own(
        string id,
        int deprivileged,
        int own
    )
    {
        Assert.Equal(deprivileged, Find(id).ExitsUnder(GuestInterface.Paravirtual, Capabilities(true, false)));
        Assert.Equal(own, Find(id).ExitsUnder(GuestInterface.Paravirtual, Capabilities(false, false)));
    }

    [Theory]
    [InlineData("interrupt-flag", "sti")]
    [InlineData("popf", "popf")]
    [InlineData("syscall", "sysretq")]
    [InlineData("page-fault", "iretq")]
    [InlineData("rdtsc", "rdtsc")]
    public void A_hole_that_the_paravirtual_interface_goes_around_is_none_of_the_workload(string id, string hole)
    {
        EngineCapabilities capabilities = Capabilities(true, false) with { Holes = [new VirtualizationHole(hole, "")] };
        Assert.NotEmpty(Find(id).HolesUnder(GuestInterface.Native, capabilities));
        Assert.Empty(Find(id).HolesUnder(GuestInterface.Paravirtual, capabilities));
    }

    [Fact]
    public void Ids_are_those_that_files_and_scripts_rely_on()
    {
        Assert.Equal(
            [
                "compute",
                "rdtsc",
                "port-io",
                "cr3-switch",
                "interrupt-flag",
                "popf",
                "cpuid",
                "descriptor-tables",
                "syscall",
                "page-fault",
                "pte-update",
                "timer-interrupt",
                "self-modifying",
                "disk-stream",
                "disk-io",
                "mini-os",
                "compute-hash",
                "compute-mix",
                "compute-bytecode",
                "compute-stream",
                "compute-sse2",
                "call-return",
                "indirect-branch",
                "indirect-branch-short",
            ],
            WorkloadCatalog.All.Select(workload => workload.Id)
        );
        Assert.Null(WorkloadCatalog.Find("no-such"));
    }

    [Theory]
    [InlineData("popf", "popf")]
    [InlineData("cpuid", "cpuid")]
    [InlineData("descriptor-tables", "sidt")]
    [InlineData("syscall", "sysretq")]
    [InlineData("rdtsc", "rdtsc")]
    public void What_an_engine_lets_through_does_not_trap_and_is_a_hole_of_the_workload(string id, string instruction)
    {
        var hole = new VirtualizationHole(instruction, "answers for someone else");
        EngineCapabilities capabilities = Capabilities(true, false) with
        {
            Holes = [new VirtualizationHole("lar", ""), hole],
        };
        Assert.Equal([hole], Find(id).HolesUnder(GuestInterface.Native, capabilities));
        Assert.False(Find(id).TrapsUnder(GuestInterface.Native, capabilities));
    }

    [Fact]
    public void A_hole_of_ring_3_is_none_of_a_workload_that_stays_in_ring_0()
    {
        EngineCapabilities capabilities = Capabilities(true, false) with
        {
            Holes =
            [
                new VirtualizationHole("popf", "") { InUserModeOnly = true },
                new VirtualizationHole("syscall", "") { InUserModeOnly = true },
            ],
        };
        Assert.Empty(Find("popf").HolesUnder(GuestInterface.Native, capabilities));
        Assert.Single(Find("syscall").HolesUnder(GuestInterface.Native, capabilities));
    }

    private static EngineCapabilities Capabilities(bool privileged, bool timeStampCounter) =>
        new()
        {
            TrapsPrivilegedInstructions = privileged,
            TrapsTimeStampCounter = timeStampCounter,
            TimeSource = "computed: nothing",
        };

    private static int OperationInstructions(SlottedWorkload workload, int k, GuestInterface guestInterface) =>
        Enumerable.Range(0, k).Sum(index => workload.OperationInstructions(guestInterface, index));

    private static List<Code> Unit(Workload workload, int k, GuestInterface guestInterface) =>
        [.. Instructions(workload, k, guestInterface).Select(instruction => instruction.Code)];

    /// <summary>Those of the units, not the operations' own: the control has none of these.</summary>
    private static List<ulong> Branches(Workload workload, int k, GuestInterface guestInterface)
    {
        List<Instruction> unit = Instructions(workload, k, guestInterface);
        ulong end = unit[^1].NextIP;
        return
        [
            .. unit.Where(instruction => instruction.IsJccShortOrNear && instruction.NearBranchTarget < end)
                .SelectMany(instruction => (ulong[])[instruction.IP, instruction.NearBranchTarget]),
        ];
    }

    /// <summary>The instructions of the unit, up to the RET.</summary>
    private static List<Instruction> Instructions(Workload workload, int k, GuestInterface guestInterface)
    {
        GuestImage image = workload.Build(new WorkloadOptions(k, workload.DefaultFiller, guestInterface));
        var decoder = Decoder.Create(64, image.Segments[0].Content.ToArray(), image.Segments[0].PhysicalAddress);
        return [.. decoder.TakeWhile(instruction => instruction.Mnemonic != Mnemonic.Ret)];
    }
}
