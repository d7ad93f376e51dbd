using System.Globalization;
using System.Text.Json;
using System.Text.Json.Nodes;

namespace VirtBench.Reporting.Reports;

/// <summary>environment.json as a table, whatever it holds: one row a value, named by its path.</summary>
internal static class EnvironmentTable
{
    public static Table Of(JsonNode environment)
    {
        var rows = new List<IReadOnlyList<string>>();
        Visit(environment, [], rows);
        return new Table(
            "The machine and the software, as environment.json has them",
            [new("What"), new("Value")],
            rows
        );
    }

    private static void Visit(JsonNode? node, IReadOnlyList<string> path, List<IReadOnlyList<string>> rows)
    {
        switch (node)
        {
            case JsonObject parts when parts.Count > 0:
                foreach (var (name, value) in parts)
                {
                    Visit(value, [.. path, name.Replace('_', ' ')], rows);
                }
                break;
            case JsonArray items when items.Any(item => item is JsonObject or JsonArray):
                for (var i = 0; i < items.Count; i++)
                {
                    Visit(items[i], [.. path, (i + 1).ToString(CultureInfo.InvariantCulture)], rows);
                }
                break;
            case JsonArray items:
                rows.Add([Name(path), items.Count == 0 ? "none" : string.Join(", ", items.Select(Text))]);
                break;
            default:
                rows.Add([Name(path), Text(node)]);
                break;
        }
    }

    private static string Name(IReadOnlyList<string> path) => string.Join(" › ", path);

    private static string Text(JsonNode? node) =>
        node?.GetValueKind() switch
        {
            null or JsonValueKind.Null => "not known",
            JsonValueKind.True => "yes",
            JsonValueKind.False => "no",
            JsonValueKind.String => node.GetValue<string>(),
            JsonValueKind.Object => "none",
            _ => node.ToJsonString(),
        };
}
