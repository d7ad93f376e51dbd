namespace VirtBench.EndToEnd;

/// <summary>Where the sources are, seen from a test's output folder.</summary>
internal static class Repository
{
    public static string Root { get; } = Find();

    public static IEnumerable<string> SourceFiles(params string[] parts) =>
        Directory
            .EnumerateFiles(Path.Combine([Root, .. parts]), "*.cs", SearchOption.AllDirectories)
            .Where(file => !file.Split(Path.DirectorySeparatorChar).Any(part => part is "obj" or "bin"));

    private static string Find()
    {
        for (DirectoryInfo? at = new(AppContext.BaseDirectory); at is not null; at = at.Parent)
        {
            if (File.Exists(Path.Combine(at.FullName, "VirtBench.sln")))
            {
                return at.FullName;
            }
        }

        throw new InvalidOperationException("the tests must run from inside the repository");
    }
}
