using System.Globalization;
using System.Text.Json;
using Iced.Intel;

namespace VirtBench.Strategies.Simulation;

/// <summary>A cost profile that cannot be used. The message is one line that names the field.</summary>
public sealed class CostProfileException(string message) : Exception(message);

/// <summary>What the simulated host's ring 3 reads with SGDT, SIDT, SLDT, STR and SMSW (no UMIP).</summary>
/// <param name="GdtBase">SGDT: linear base.</param>
/// <param name="GdtLimit">SGDT: limit.</param>
/// <param name="IdtBase">SIDT: linear base.</param>
/// <param name="IdtLimit">SIDT: limit.</param>
/// <param name="Ldt">SLDT: selector.</param>
/// <param name="Tr">STR: selector.</param>
/// <param name="MachineStatus">SMSW: low 32 bits of CR0.</param>
public sealed record SimulatedHost(
    ulong GdtBase,
    ushort GdtLimit,
    ulong IdtBase,
    ushort IdtLimit,
    ushort Ldt,
    ushort Tr,
    uint MachineStatus
)
{
    internal HostSelectors ToSelectors() =>
        new()
        {
            Cs = HostSegments.UserCode,
            Ss = HostSegments.UserData,
            Ldt = Ldt,
            Tr = Tr,
            GdtBase = GdtBase,
            GdtLimit = GdtLimit,
            IdtBase = IdtBase,
            IdtLimit = IdtLimit,
            MachineStatus = MachineStatus,
        };
}

/// <summary>
/// What things cost on the simulated CPU, in cycles. Read from JSON; <c>Profiles/textbook.json</c> documents every field.
/// </summary>
public sealed record CostProfile
{
    /// <summary>Most cycles that any one thing may cost: keeps a block's sum in 32 bits.</summary>
    public const int MaximumCycles = 60_000;

    /// <summary>Name, for time sources and reports.</summary>
    public required string Name { get; init; }

    /// <summary>Cycles per second.</summary>
    public required double ClockHertz { get; init; }

    /// <summary>Cycles of an instruction that <see cref="Instructions"/> does not list.</summary>
    public required int InstructionCycles { get; init; }

    /// <summary>Cycles by mnemonic.</summary>
    public required IReadOnlyDictionary<Mnemonic, int> Instructions { get; init; }

    /// <summary>World switch out of the guest.</summary>
    public required int ExitCycles { get; init; }

    /// <summary>World switch into the guest.</summary>
    public required int EntryCycles { get; init; }

    /// <summary>Emulation of one exit by the VMM.</summary>
    public required int EmulationCycles { get; init; }

    /// <summary>What sensitive instructions that do not trap see.</summary>
    public required SimulatedHost Host { get; init; }

    /// <summary>What a translator costs; null in a profile that says nothing of one, which then cannot be translated with.</summary>
    public TranslationCosts? Translation { get; init; }

    /// <summary>What hypercalls cost; null in a profile that says nothing of them, which no paravirtual guest can then run with.</summary>
    public ParavirtualCosts? Paravirtual { get; init; }

    /// <summary>The profile that comes with VirtBench.</summary>
    public static CostProfile Textbook { get; } = LoadEmbedded("textbook");

    /// <summary>Reads a profile from a file.</summary>
    /// <exception cref="CostProfileException">The file cannot be read or a field is missing, unknown or out of range.</exception>
    public static CostProfile Load(string path)
    {
        try
        {
            return Parse(File.ReadAllBytes(path), path);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new CostProfileException($"cannot read cost profile {path}: {e.Message}");
        }
    }

    private static CostProfile LoadEmbedded(string name)
    {
        using Stream stream = typeof(CostProfile).Assembly.GetManifestResourceStream($"CostProfiles.{name}.json")!;
        var content = new MemoryStream();
        stream.CopyTo(content);
        return Parse(content.ToArray(), name);
    }

    /// <summary>Reads a profile from UTF-8 JSON.</summary>
    /// <param name="json">The file's content; comments and trailing commas are allowed.</param>
    /// <param name="source">What to call it in messages.</param>
    /// <exception cref="CostProfileException">A field is missing, unknown or out of range, or it is not JSON.</exception>
    public static CostProfile Parse(ReadOnlyMemory<byte> json, string source)
    {
        try
        {
            using var document = JsonDocument.Parse(
                json,
                new JsonDocumentOptions { CommentHandling = JsonCommentHandling.Skip, AllowTrailingCommas = true }
            );
            return Parse(document.RootElement, source);
        }
        catch (JsonException e)
        {
            throw new CostProfileException($"cost profile {source} is not JSON: {e.Message}");
        }
    }

    private static CostProfile Parse(JsonElement root, string source)
    {
        CostProfileException Wrong(string what) => new($"cost profile {source}: {what}");

        if (root.ValueKind != JsonValueKind.Object)
        {
            throw Wrong("the file must hold one object");
        }

        string[] known =
        [
            "name",
            "description",
            "clockHertz",
            "instructionCycles",
            "instructions",
            "exitCycles",
            "entryCycles",
            "emulationCycles",
            "host",
            "translation",
            "paravirtual",
        ];
        foreach (JsonProperty property in root.EnumerateObject())
        {
            if (!known.Contains(property.Name))
            {
                throw Wrong($"unknown field '{property.Name}'; known are {string.Join(", ", known)}");
            }
        }

        JsonElement Field(string name) =>
            root.TryGetProperty(name, out JsonElement value) ? value : throw Wrong($"field '{name}' is missing");

        int CyclesOf(JsonElement value, string name) =>
            value.ValueKind == JsonValueKind.Number
            && value.TryGetInt32(out int cycles)
            && cycles is >= 0 and <= MaximumCycles
                ? cycles
                : throw Wrong($"'{name}' must be a whole number of cycles from 0 to {MaximumCycles}");

        var instructions = new Dictionary<Mnemonic, int>();
        JsonElement table = Field("instructions");
        if (table.ValueKind != JsonValueKind.Object)
        {
            throw Wrong("'instructions' must be an object of mnemonics and cycles");
        }

        foreach (JsonProperty property in table.EnumerateObject())
        {
            if (
                !Enum.TryParse(property.Name, ignoreCase: true, out Mnemonic mnemonic)
                || !Enum.IsDefined(mnemonic)
                || char.IsAsciiDigit(property.Name[0])
            )
            {
                throw Wrong($"'{property.Name}' is not an x86 mnemonic");
            }

            instructions[mnemonic] = CyclesOf(property.Value, property.Name);
        }

        JsonElement clock = Field("clockHertz");
        if (clock.ValueKind != JsonValueKind.Number || clock.GetDouble() is not (>= 1e3 and <= 1e12))
        {
            throw Wrong("'clockHertz' must be a number from 1e3 to 1e12");
        }

        JsonElement name = Field("name");
        if (name.ValueKind != JsonValueKind.String || string.IsNullOrWhiteSpace(name.GetString()))
        {
            throw Wrong("'name' must be a string that is not empty");
        }

        JsonElement host = Field("host");
        ulong HostField(string field, ulong maximum)
        {
            string? text =
                host.ValueKind == JsonValueKind.Object
                && host.TryGetProperty(field, out JsonElement value)
                && value.ValueKind == JsonValueKind.String
                    ? value.GetString()
                    : null;
            bool hexadecimal = text?.StartsWith("0x", StringComparison.OrdinalIgnoreCase) == true;
            return
                ulong.TryParse(
                    hexadecimal ? text.AsSpan(2) : text,
                    hexadecimal ? NumberStyles.AllowHexSpecifier : NumberStyles.None,
                    CultureInfo.InvariantCulture,
                    out ulong number
                )
                && number <= maximum
                ? number
                : throw Wrong($"'host.{field}' must be a string with a number from 0 to 0x{maximum:X}");
        }

        TranslationCosts ParseTranslation(JsonElement value)
        {
            if (value.ValueKind != JsonValueKind.Object)
            {
                throw Wrong("'translation' must be an object");
            }

            string[] fields = ["instructionCycles", "inlineCycles", "inline", "calloutCycles", "indirectCycles"];
            foreach (JsonProperty property in value.EnumerateObject())
            {
                if (!fields.Contains(property.Name))
                {
                    throw Wrong($"unknown field 'translation.{property.Name}'; known are {string.Join(", ", fields)}");
                }
            }

            JsonElement Part(string part) =>
                value.TryGetProperty(part, out JsonElement found)
                    ? found
                    : throw Wrong($"field 'translation.{part}' is missing");

            int Cycles(string part) => CyclesOf(Part(part), $"translation.{part}");

            JsonElement inline = Part("inline");
            if (inline.ValueKind != JsonValueKind.Object)
            {
                throw Wrong("'translation.inline' must be an object of instructions and cycles");
            }

            var inlined = new Dictionary<string, int>();
            foreach (JsonProperty property in inline.EnumerateObject())
            {
                if (!InlinedInstructions.Names.Contains(property.Name))
                {
                    throw Wrong(
                        $"'translation.inline.{property.Name}' is not served inline; these are: "
                            + string.Join("; ", InlinedInstructions.Names)
                    );
                }

                inlined[property.Name] = CyclesOf(property.Value, $"translation.inline.{property.Name}");
            }

            return new TranslationCosts
            {
                InstructionCycles = Cycles("instructionCycles"),
                InlineCycles = Cycles("inlineCycles"),
                Inline = inlined,
                CalloutCycles = Cycles("calloutCycles"),
                IndirectCycles = Cycles("indirectCycles"),
            };
        }

        ParavirtualCosts ParseParavirtual(JsonElement value)
        {
            const string field = "hypercallCycles";
            if (value.ValueKind != JsonValueKind.Object)
            {
                throw Wrong("'paravirtual' must be an object");
            }

            foreach (JsonProperty property in value.EnumerateObject())
            {
                if (property.Name != field)
                {
                    throw Wrong($"unknown field 'paravirtual.{property.Name}'; known is {field}");
                }
            }

            return value.TryGetProperty(field, out JsonElement cycles)
                ? new ParavirtualCosts { HypercallCycles = CyclesOf(cycles, $"paravirtual.{field}") }
                : throw Wrong($"field 'paravirtual.{field}' is missing");
        }

        return new CostProfile
        {
            Name = name.GetString()!,
            ClockHertz = clock.GetDouble(),
            InstructionCycles = CyclesOf(Field("instructionCycles"), "instructionCycles"),
            Instructions = instructions,
            ExitCycles = CyclesOf(Field("exitCycles"), "exitCycles"),
            EntryCycles = CyclesOf(Field("entryCycles"), "entryCycles"),
            EmulationCycles = CyclesOf(Field("emulationCycles"), "emulationCycles"),
            Host = new SimulatedHost(
                HostField("gdtBase", ulong.MaxValue),
                (ushort)HostField("gdtLimit", ushort.MaxValue),
                HostField("idtBase", ulong.MaxValue),
                (ushort)HostField("idtLimit", ushort.MaxValue),
                (ushort)HostField("ldt", ushort.MaxValue),
                (ushort)HostField("tr", ushort.MaxValue),
                (uint)HostField("machineStatus", uint.MaxValue)
            ),
            Translation = root.TryGetProperty("translation", out JsonElement translation)
                ? ParseTranslation(translation)
                : null,
            Paravirtual = root.TryGetProperty("paravirtual", out JsonElement paravirtual)
                ? ParseParavirtual(paravirtual)
                : null,
        };
    }

    /// <summary>Cycles of one instruction.</summary>
    public int CyclesOf(Mnemonic mnemonic) => Instructions.GetValueOrDefault(mnemonic, InstructionCycles);
}
