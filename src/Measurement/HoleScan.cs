using Iced.Intel;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;

namespace VirtBench.Measurement;

/// <summary>An instruction of a guest image that an engine executes without the VMM seeing it.</summary>
/// <param name="Address">Guest-physical address, which is the linear one at boot.</param>
/// <param name="Hole">Which hole it falls through.</param>
public readonly record struct HoleOccurrence(ulong Address, VirtualizationHole Hole);

/// <summary>
/// Looks for instructions that fall through an engine's holes, by a linear sweep over an image's executable segments. It
/// sees what lies there before the guest runs: not code that the guest writes or loads itself; and bytes of data
/// between functions may look like an instruction.
/// </summary>
public static class HoleScan
{
    /// <summary>Code that is searched, in bytes, from the first segment on: about a second's worth.</summary>
    public const int MaximumBytes = 64 << 20;

    /// <summary>Occurrences that are listed: a file full of them must not fill the host's memory.</summary>
    public const int MaximumOccurrences = 10_000;

    /// <summary>Whether an image has no more code than is searched.</summary>
    public static bool SearchesAllOf(GuestImage image) =>
        image.Segments.Where(segment => segment.Executable).Sum(segment => (long)segment.Content.Length)
        <= MaximumBytes;

    /// <summary>
    /// Occurrences in the order of segments and addresses: the first <see cref="MaximumOccurrences"/> of them in the first
    /// <see cref="MaximumBytes"/> of code.
    /// </summary>
    public static IReadOnlyList<HoleOccurrence> Find(GuestImage image, IReadOnlyList<VirtualizationHole> holes)
    {
        var found = new List<HoleOccurrence>();
        if (holes.Count == 0)
        {
            return found;
        }

        var byName = new Dictionary<string, VirtualizationHole>();
        foreach (VirtualizationHole hole in holes)
        {
            foreach (string name in hole.Names)
            {
                byName.TryAdd(name, hole);
            }
        }

        int left = MaximumBytes;
        foreach (ImageSegment segment in image.Segments)
        {
            if (segment.Executable)
            {
                ReadOnlyMemory<byte> code = segment.Content[..Math.Min(segment.Content.Length, left)];
                left -= code.Length;
                Sweep(segment.PhysicalAddress, code.ToArray(), byName, found);
            }
        }

        return found;
    }

    /// <summary>Lines for the user: the first few occurrences one by one, the others counted.</summary>
    /// <param name="occurrences">What <see cref="Find"/> found.</param>
    /// <param name="strategy">Strategy id.</param>
    /// <param name="most">Lines before the rest is counted.</param>
    public static IReadOnlyList<string> Describe(
        IReadOnlyList<HoleOccurrence> occurrences,
        string strategy,
        int most = 5
    )
    {
        var lines = occurrences
            .Take(most)
            .Select(one =>
                $"{one.Hole.Instruction} at 0x{one.Address:X} is not trapped under {strategy}: {one.Hole.Effect}"
            )
            .ToList();
        if (occurrences.Count > most)
        {
            IEnumerable<string> counts = occurrences
                .Skip(most)
                .GroupBy(one => one.Hole.Instruction)
                .Select(group => $"{group.Key} {group.Count()}");
            string least = occurrences.Count == MaximumOccurrences ? "at least " : "";
            lines.Add(
                $"{least}{occurrences.Count - most} more are not trapped under {strategy}: {string.Join(", ", counts)}"
            );
        }

        return lines;
    }

    private static void Sweep(
        ulong start,
        byte[] content,
        Dictionary<string, VirtualizationHole> holes,
        List<HoleOccurrence> found
    )
    {
        var reader = new ByteArrayCodeReader(content);
        var decoder = Decoder.Create(64, reader, start);
        var names = new string?[Enum.GetValues<Mnemonic>().Length];
        while (reader.CanReadByte && found.Count < MaximumOccurrences)
        {
            decoder.Decode(out Instruction instruction);
            if (instruction.IsInvalid)
            {
                // Data or padding: go on behind its first byte.
                reader.Position = (int)(instruction.IP - start) + 1;
                decoder.IP = instruction.IP + 1;
                continue;
            }

            string name = names[(int)instruction.Mnemonic] ??= Name(instruction.Mnemonic);
            (string? form, string? general, string? move) = SegmentForms(instruction);
            if (
                holes.TryGetValue(name, out VirtualizationHole? hole)
                || (form is not null && holes.TryGetValue(form, out hole))
                || (general is not null && holes.TryGetValue(general, out hole))
                || (move is not null && holes.TryGetValue(move, out hole))
                || (instruction.Encoding != EncodingKind.Legacy && holes.TryGetValue(BeyondThePlatform, out hole))
            )
            {
                found.Add(new HoleOccurrence(instruction.IP, hole));
            }
        }
    }

    /// <summary>The hole that stands for the host CPU's own instructions: the four of FSGSBASE, and all with a VEX prefix or its like.</summary>
    private const string BeyondThePlatform = "wrfsbase";

    /// <summary>The name that holes go by: of POPF and PUSHF whatever their operand size.</summary>
    private static string Name(Mnemonic mnemonic) =>
        mnemonic switch
        {
            Mnemonic.Popf or Mnemonic.Popfd or Mnemonic.Popfq => "popf",
            Mnemonic.Pushf or Mnemonic.Pushfd or Mnemonic.Pushfq => "pushf",
            Mnemonic.Rdfsbase or Mnemonic.Rdgsbase or Mnemonic.Wrfsbase or Mnemonic.Wrgsbase => BeyondThePlatform,
            _ => mnemonic.ToString().ToLowerInvariant(),
        };

    /// <summary>
    /// Names of an instruction that moves a segment register: with the register, for any of them, and as the MOV that PUSH
    /// and POP amount to.
    /// </summary>
    private static (string? Form, string? General, string? Move) SegmentForms(in Instruction instruction)
    {
        Register to = instruction.Op0Register;
        Register from = instruction.Op1Register;
        return instruction.Mnemonic switch
        {
            Mnemonic.Mov when from.IsSegmentRegister() => ($"mov r,{Lower(from)}", "mov r,sreg", null),
            Mnemonic.Mov when to.IsSegmentRegister() => ($"mov {Lower(to)}", "mov sreg", null),
            Mnemonic.Push when to.IsSegmentRegister() => ($"push {Lower(to)}", "push sreg", "mov r,sreg"),
            Mnemonic.Pop when to.IsSegmentRegister() => ($"pop {Lower(to)}", "pop sreg", "mov sreg"),
            _ => (null, null, null),
        };
    }

    private static string Lower(Register register) => register.ToString().ToLowerInvariant();
}
