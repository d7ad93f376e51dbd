using VirtBench.Strategies;
using VirtBench.Workloads;

namespace VirtBench.Measurement.Tests;

public sealed class SweepPlanTests
{
    private static readonly Strategy[] Strategies =
    [
        new ScriptedStrategy("trap-and-emulate"),
        ScriptedStrategy.Native(),
        ScriptedStrategy.Computed("simulated-trap-and-emulate"),
    ];

    private static SweepPlan Plan(ulong seed = 1, int rounds = 5) =>
        SweepPlan.Create(Strategies, WorkloadCatalog.All, [0, 1, 2, 4, 8, 16], rounds, seed);

    [Fact]
    public void The_same_seed_gives_the_same_order()
    {
        for (ulong seed = 0; seed < 50; seed++)
        {
            Assert.Equal(Plan(seed).Order, Plan(seed).Order);
        }
    }

    [Fact]
    public void Another_seed_gives_another_order()
    {
        Assert.Equal(
            50,
            Enumerable.Range(0, 50).Select(seed => string.Join(' ', Plan((ulong)seed).Order)).Distinct().Count()
        );
    }

    [Fact]
    public void More_rounds_begin_with_the_same_ones()
    {
        SweepPlan few = Plan(rounds: 3);
        SweepPlan many = Plan(rounds: 20);
        Assert.Equal(few.Order, many.Order.Take(few.Order.Count));
    }

    [Fact]
    public void Each_round_holds_every_measured_cell_once_and_rounds_do_not_overlap()
    {
        for (ulong seed = 0; seed < 20; seed++)
        {
            SweepPlan plan = Plan(seed);
            Cell[] measured =
            [
                .. plan.Cells.Where(cell => !cell.Strategy.StartsWith("simulated-", StringComparison.Ordinal)),
            ];
            Assert.Equal(plan.Order.OrderBy(sample => sample.Round), plan.Order);
            foreach (IGrouping<int, PlannedSample> round in plan.Order.GroupBy(sample => sample.Round))
            {
                IEnumerable<Cell> expected = round.Key == 0 ? plan.Cells : measured;
                Assert.Equal(expected.Count(), round.Count());
                Assert.Equal(expected.ToHashSet(), round.Select(sample => sample.Cell).ToHashSet());
            }
        }
    }

    [Fact]
    public void Computed_cells_are_taken_once()
    {
        Assert.All(
            Plan(rounds: 9)
                .Order.Where(sample => sample.Cell.Strategy == "simulated-trap-and-emulate")
                .GroupBy(sample => sample.Cell),
            cell => Assert.Single(cell)
        );
    }

    [Theory]
    [InlineData(1, 1)]
    [InlineData(2, 2)]
    [InlineData(6, 2)]
    [InlineData(10, 4)]
    [InlineData(100, 34)]
    public void An_emulator_of_ring_0_takes_part_in_a_third_of_the_rounds_but_in_two(int rounds, int expected)
    {
        Strategy[] strategies = [Strategies[0], new ScriptedStrategy("hardware") { Emulates = true }];
        SweepPlan plan = SweepPlan.Create(strategies, [new Rdtsc()], [0, 1], rounds, 1);
        Assert.Equal(2 * expected, plan.Order.Count(sample => sample.Cell.Strategy == "hardware"));
        Assert.Equal(2 * rounds, plan.Order.Count(sample => sample.Cell.Strategy == "trap-and-emulate"));
    }

    [Fact]
    public void No_cell_prefers_a_place_in_the_round()
    {
        // 400 rounds of 24 cells: each place expects 400/24 ≈ 17 visits of a cell; 50 or none at all would be no shuffle.
        Workload[] four = [.. WorkloadCatalog.All.Take(4)];
        SweepPlan plan = SweepPlan.Create([Strategies[0]], four, [0, 1, 2, 4, 8, 16], 400, 7);
        var visits = new Dictionary<(Cell, int), int>();
        foreach (IGrouping<int, PlannedSample> round in plan.Order.GroupBy(sample => sample.Round))
        {
            int place = 0;
            foreach (PlannedSample sample in round)
            {
                visits[(sample.Cell, place)] = visits.GetValueOrDefault((sample.Cell, place)) + 1;
                place++;
            }
        }

        Assert.Equal(plan.Cells.Count * plan.Cells.Count, visits.Count);
        Assert.InRange(visits.Values.Max(), 12, 45);
    }

    [Fact]
    public void What_cannot_run_is_skipped_with_the_reason()
    {
        SweepPlan plan = SweepPlan.Create(
            [.. Strategies, new ScriptedStrategy("hardware") { Unavailable = "there is no /dev/kvm; load kvm_intel" }],
            WorkloadCatalog.All,
            [0, 16, 32],
            1,
            1
        );
        Assert.Contains(new SkippedCell("hardware", null, "there is no /dev/kvm; load kvm_intel"), plan.Skipped);
        Assert.Contains(
            plan.Skipped,
            s => s is { Strategy: "native", Workload: "port-io" } && s.Reason.Contains("out dx, al")
        );
        Assert.Contains(plan.Skipped, s => s is { Strategy: "native", Workload: "cr3-switch" });
        Assert.Contains(
            plan.Skipped,
            s => s is { Strategy: "trap-and-emulate", Workload: "cr3-switch" } && s.Reason.Contains("k = 32")
        );
        Assert.DoesNotContain(plan.Cells, cell => cell.Strategy == "hardware");
        Assert.DoesNotContain(plan.Cells, cell => cell is { Strategy: "native", Workload: "port-io" });
        Assert.DoesNotContain(plan.Cells, cell => cell is { Workload: "cr3-switch", TrapsPerUnit: 32 });
        Assert.Contains(plan.Cells, cell => cell is { Strategy: "native", Workload: "rdtsc", TrapsPerUnit: 32 });
    }

    [Theory]
    [InlineData("0 1 2 4", "0")]
    [InlineData("0", "0")]
    [InlineData("16 128 8", "8")]
    public void A_workload_in_which_nothing_depends_on_k_is_measured_at_the_least_only(string asked, string measured)
    {
        int[] densities = [.. asked.Split(' ').Select(int.Parse)];
        SweepPlan plan = SweepPlan.Create([Strategies[0]], [new CallReturn(), new Compute()], densities, 2, 1);
        Assert.Equal(measured, Measured("call-return"));
        Assert.Equal(string.Join(' ', densities.Where(k => k <= 64).Order()), Measured("compute"));

        string Measured(string id) =>
            string.Join(' ', plan.Cells.Where(cell => cell.Workload == id).Select(cell => cell.TrapsPerUnit));
    }

    [Fact]
    public void Sse2_is_skipped_where_an_emulator_runs_ring_0()
    {
        Strategy[] strategies = [Strategies[0], new ScriptedStrategy("hardware") { Emulates = true }];
        SweepPlan plan = SweepPlan.Create(strategies, WorkloadCatalog.All, [0, 1], 1, 1);
        SkippedCell skipped = Assert.Single(plan.Skipped);
        Assert.Equal(("hardware", "compute-sse2"), (skipped.Strategy, skipped.Workload));
        Assert.Contains("without SSE2", skipped.Reason, StringComparison.Ordinal);
        Assert.Contains(plan.Cells, cell => cell is { Strategy: "trap-and-emulate", Workload: "compute-sse2" });
    }

    [Fact]
    public void The_control_is_in_every_profile()
    {
        Assert.All(SweepProfile.All, profile => Assert.Equal(0, profile.Densities[0]));
        Assert.All(SweepProfile.All, profile => Assert.True(profile.Densities.Count >= 5));
        Assert.All(SweepProfile.All, profile => Assert.Same(profile, SweepProfile.Find(profile.Name)));
    }

    [Fact]
    public void The_generator_gives_the_published_sequence()
    {
        // First outputs for seed 1234567, as listed with the reference implementation of SplitMix64.
        var random = new SplitMix64(1234567);
        Assert.Equal(6457827717110365317UL, random.Next());
        Assert.Equal(3203168211198807973UL, random.Next());
        Assert.Equal(9817491932198370423UL, random.Next());
    }
}
