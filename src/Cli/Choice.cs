using System.Globalization;
using VirtBench.Strategies;
using VirtBench.Strategies.Shadow;
using VirtBench.Strategies.Simulation;
using VirtBench.Strategies.TrapAndEmulate;
using VirtBench.Vmm.Interrupts;
using VirtBench.Workloads;

namespace VirtBench.Cli;

/// <summary>From the words of a command line to strategies, workloads and numbers.</summary>
internal static class Choice
{
    /// <summary>The strategies named, or all when the option is left out.</summary>
    /// <param name="words">The option's words.</param>
    /// <param name="profile">Cost profile of the simulated strategies; null for textbook.</param>
    /// <param name="shadow">The word given for trap-and-emulate's policy of shadow paging; null when it was left out.</param>
    public static IReadOnlyList<Strategy> Strategies(string[] words, CostProfile? profile = null, string? shadow = null)
    {
        ShadowPaging? policy = Shadow(shadow);
        IReadOnlyList<Strategy> strategies = Of(
            words,
            StrategyCatalog.With(profile ?? CostProfile.Textbook, policy),
            strategy => strategy.Id,
            "strategy",
            "strategies"
        );
        return policy is null || strategies.Any(strategy => strategy is TrapAndEmulateStrategy)
            ? strategies
            : throw new UsageException(
                $"--shadow {shadow}: only trap-and-emulate has these policies, and the strategy is "
                    + string.Join(", ", strategies.Select(strategy => strategy.Id))
            );
    }

    private static ShadowPaging? Shadow(string? word) =>
        word switch
        {
            null => null,
            "flush" => ShadowPaging.Flush,
            "cached" => ShadowPaging.Cached,
            _ => throw new UsageException($"--shadow {word}: give flush or cached"),
        };

    /// <summary>Ways of delivering device interrupts: exits when the option is left out.</summary>
    public static IReadOnlyList<InterruptDelivery> Deliveries(string[] words)
    {
        InterruptDelivery[] known = Enum.GetValues<InterruptDelivery>();
        string names = string.Join(", ", known.Select(delivery => delivery.Name()));
        string[] given = Split(words);
        if (words.Length == 0)
        {
            return [InterruptDelivery.Exit];
        }

        if (given.Length == 0)
        {
            throw new UsageException($"--interrupt-delivery names none; give some of {names}, or all");
        }

        return given is ["all"]
            ? known
            :
            [
                .. given
                    .Distinct()
                    .Select(word =>
                        Array.FindIndex(known, delivery => delivery.Name() == word) is >= 0 and var index
                            ? known[index]
                            : throw new UsageException($"--interrupt-delivery {word}: give some of {names}, or all")
                    )
                    .Order(),
            ];
    }

    /// <summary>A strategy that this host can run, with one way of delivering device interrupts.</summary>
    public static Strategy Delivering(Strategy strategy, string way)
    {
        InterruptDelivery delivery = Deliveries([way]) is [var only]
            ? only
            : throw new UsageException($"--interrupt-delivery {way}: give one way, a guest has one at a time");
        return strategy.WhyNotDelivered(delivery) is { } reason
            ? throw new JobException(
                $"--interrupt-delivery {way} is not available here: {reason}",
                ExitCode.GuestNotRun
            )
            : StrategyCatalog.Delivering([strategy], [delivery])[0];
    }

    /// <summary>The workloads named, or all when the option is left out.</summary>
    public static IReadOnlyList<Workload> Workloads(string[] words) =>
        Of(words, WorkloadCatalog.All, workload => workload.Id, "workload", "workloads");

    /// <summary>One strategy that this host can run.</summary>
    public static Strategy AvailableStrategy(string word, CostProfile? profile = null, string? shadow = null)
    {
        Strategy strategy = Strategies([word], profile, shadow) is [var only]
            ? only
            : throw new UsageException($"--strategy {word}: give one strategy, a guest runs under one at a time");
        return strategy.UnavailableReason() is { } reason
            ? throw new JobException($"strategy {strategy.Id} is not available here: {reason}", ExitCode.GuestNotRun)
            : strategy;
    }

    /// <summary>The cost profile in this file, or null when none was given.</summary>
    public static CostProfile? Profile(string? file)
    {
        try
        {
            return file is null ? null : CostProfile.Load(file);
        }
        catch (CostProfileException e)
        {
            throw new UsageException($"--cost-profile: {e.Message}");
        }
    }

    /// <summary>Trap densities: whole numbers, ascending, the control among them.</summary>
    public static IReadOnlyList<int> Densities(string[] words)
    {
        var densities = new SortedSet<int>();
        string[] numbers = Split(words);
        if (numbers.Length == 0)
        {
            throw new UsageException("--traps-per-unit names no number; give e.g. 0,1,2,4,8");
        }

        foreach (string word in numbers)
        {
            if (!int.TryParse(word, NumberStyles.None, CultureInfo.InvariantCulture, out int k))
            {
                throw new UsageException(
                    $"'{word}' is not a number of traps per unit: give whole numbers from 0, e.g. 0,1,2,4,8"
                );
            }

            densities.Add(k);
        }

        densities.Add(0); // without the control there is no t0
        return [.. densities];
    }

    /// <summary>Splits what may come as <c>a,b</c>, as <c>a b</c> or repeated.</summary>
    public static string[] Split(string[] words) =>
        [
            .. words.SelectMany(word =>
                word.Split(',', StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries)
            ),
        ];

    private static IReadOnlyList<T> Of<T>(
        string[] words,
        IReadOnlyList<T> known,
        Func<T, string> id,
        string one,
        string many
    )
    {
        string[] ids = Split(words);
        if (words.Length == 0 || ids is ["all"])
        {
            return known;
        }

        if (ids.Length == 0)
        {
            throw new UsageException($"--{one} names none; the {many} are {string.Join(", ", known.Select(id))}");
        }

        return
        [
            .. ids.Distinct()
                .Select(word =>
                    known.FirstOrDefault(candidate => id(candidate) == word)
                    ?? throw new UsageException(
                        $"there is no {one} '{word}'; the {many} are {string.Join(", ", known.Select(id))}"
                    )
                ),
        ];
    }
}
