using System.Runtime.InteropServices;

namespace VirtBench.EndToEnd;

/// <summary>Calls that .NET has no wrapper for.</summary>
internal static partial class Linux
{
    public const int Interrupt = 2;
    public const int KillNow = 9;
    public const int Terminate = 15;

    [LibraryImport("libc", EntryPoint = "kill")]
    public static partial int Kill(int process, int signal);

    [LibraryImport("libc", EntryPoint = "geteuid")]
    public static partial uint EffectiveUser();
}
