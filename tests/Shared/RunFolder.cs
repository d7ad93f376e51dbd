using System.Security.Cryptography;
using System.Text.Json;

namespace VirtBench.Tests;

/// <summary>A run directory as a script sees it: names and columns, read without the code that wrote them.</summary>
internal sealed class RunFolder(string path)
{
    public const string SamplesHeader =
        "round,strategy,workload,traps_per_unit,units,traps,elapsed_ns,guest_tsc,steal_ns,involuntary_switches,outlier,status,note";

    public const string ExitsHeader =
        "round,strategy,workload,traps_per_unit,reason,count,switch_out_ns,dispatch_ns,emulate_ns,switch_in_ns";

    public const string KernelStatisticsHeader = "round,strategy,workload,traps_per_unit,statistic,count";

    public const string FitsHeader =
        "strategy,workload,t0_ns,t0_ci_low_ns,t0_ci_high_ns,dt_ns,dt_ci_low_ns,dt_ci_high_ns,theil_sen_dt_ns,r2,lack_of_fit_p,"
        + "verdict,points";

    public string FullPath => path;

    /// <summary>The only run in a results folder.</summary>
    public static RunFolder In(string results) => new(Assert.Single(Directory.GetDirectories(results)));

    public string At(string name) => Path.Combine(path, name);

    /// <summary>Lines without the header, which must be this one. No field of these tests holds a comma.</summary>
    public string[][] Rows(string file, string header)
    {
        string[] lines = File.ReadAllText(At(file)).Split("\r\n");
        Assert.Equal(header, lines[0]);
        Assert.Equal("", lines[^1]);
        return [.. lines[1..^1].Select(line => line.Split(','))];
    }

    public string[][] Samples => Rows("samples.csv", SamplesHeader);

    /// <summary>Every file but the manifest is in the manifest with its hash, and nothing else is.</summary>
    public void AssertSealed()
    {
        using var manifest = JsonDocument.Parse(File.ReadAllBytes(At("manifest.json")));
        var written = manifest
            .RootElement.GetProperty("files")
            .EnumerateObject()
            .ToDictionary(file => file.Name, file => file.Value.GetString());
        var found = Directory
            .EnumerateFiles(path, "*", SearchOption.AllDirectories)
            .Where(file => Path.GetFileName(file) != "manifest.json")
            .ToDictionary(
                file => Path.GetRelativePath(path, file).Replace('\\', '/'),
                file => Convert.ToHexStringLower(SHA256.HashData(File.ReadAllBytes(file)))
            );
        Assert.Equal(found.OrderBy(file => file.Key), written.OrderBy(file => file.Key)!);
    }

    /// <summary>A copy elsewhere.</summary>
    public RunFolder CopyTo(string target)
    {
        foreach (string file in Directory.EnumerateFiles(path, "*", SearchOption.AllDirectories))
        {
            string to = Path.Combine(target, Path.GetRelativePath(path, file));
            Directory.CreateDirectory(Path.GetDirectoryName(to)!);
            File.Copy(file, to);
        }

        return new RunFolder(target);
    }
}
