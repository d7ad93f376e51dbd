using System.Text.Json.Nodes;

namespace VirtBench.Reporting;

/// <summary>What environment.json says of /dev/kvm; null where it does not, as in runs of earlier versions.</summary>
internal sealed class KvmEntry(JsonNode environment)
{
    public string? Module => Text("module");

    public bool? IsRingZeroEmulated =>
        Text("ring0") switch
        {
            "emulated" => true,
            "native" => false,
            _ => null,
        };

    public double? RingZeroNanoseconds => Number("ring0_nanoseconds_per_instruction");

    public double? HostNanoseconds => Number("host_nanoseconds_per_instruction");

    public bool? IsPagingNested =>
        Member(environment, "kvm", "nested_paging") is JsonValue value && value.TryGetValue(out bool nested)
            ? nested
            : null;

    public string? Paging => Text("paging");

    /// <summary>Instructions that kvm_pvm emulates at most before it looks around, as its parameter says.</summary>
    public string? EmulationBatch => TextOf(Member(environment, "kvm", "modules", "kvm_pvm", "pvm_emul_batch"));

    public IReadOnlyList<string> Missing =>
        Member(environment, "kvm", "missing") is JsonArray items
            ?
            [
                .. items
                    .Select(item => (Name: TextOf(Member(item, "name")), Effect: TextOf(Member(item, "effect"))))
                    .Where(item => item.Name is not null)
                    .Select(item => item.Effect is null ? item.Name! : $"{item.Name} ({item.Effect})"),
            ]
            : [];

    private string? Text(string name) => TextOf(Member(environment, "kvm", name));

    private double? Number(string name) =>
        Member(environment, "kvm", name) is JsonValue value && value.TryGetValue(out double number) ? number : null;

    private static string? TextOf(JsonNode? node) =>
        node is JsonValue value && value.TryGetValue(out string? text) ? text : null;

    /// <summary>Whether a strategy of this id runs guests through /dev/kvm.</summary>
    public static bool IsOf(string strategy) => strategy.StartsWith("hardware", StringComparison.Ordinal);

    internal static JsonNode? Member(JsonNode? node, params ReadOnlySpan<string> path)
    {
        foreach (var name in path)
        {
            node = (node as JsonObject)?[name];
        }
        return node;
    }
}
