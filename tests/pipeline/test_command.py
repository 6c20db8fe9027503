"""`pipeline/command.py`: what flags and a file come to, together."""

import pytest

from adu.errors import UserError
from pipeline.command import load_config, read_yaml, run_command
from pipeline.jobs.config import SearchConfig
from pipeline.search import DEFAULT_CONFIG
from pipeline.search import SHORTCUTS as SEARCH_SHORTCUTS
from pipeline.train import SHORTCUTS, TrainCommandConfig


def method(flags, tmp_path, file=""):
    """The method that a command line, with a YAML file below it, comes to."""
    config = tmp_path / "file.yaml"
    config.write_text(f"forget: [sketch]\n{file}")
    arguments = ["--config", str(config), *flags.split()]
    return load_config(TrainCommandConfig, SHORTCUTS, arguments).method


@pytest.mark.parametrize(
    "flags",
    [
        "--method adu --method.gamma 3",
        "--method.gamma 3 --method adu",
        "--method=adu --method.gamma=3",
        "--method.name adu --method.gamma 3",
        "--method adu --method.name adu --method.gamma 3",
        "--method.gamma 3",
        '--method {"name":"adu"} --method.gamma 3',
    ],
)
def test_a_methods_name_leaves_its_other_flags_alone(flags, tmp_path):
    # They were dropped without a word: the run had the defaults.
    found = method(flags, tmp_path)
    assert (found.name, found.gamma, found.lambda_) == ("adu", 3.0, 10.0)


@pytest.mark.parametrize(
    ("file", "flags", "name", "n_ctx"),
    [
        ("method: coop", "--method.n-ctx 4", "coop", 4),
        ("method: coop", "--method coop", "coop", 16),
        ("method: {name: coop, n_ctx: 4}", "--method coop", "coop", 4),
        # Another method takes none of the file's options, which it may not have.
        ("method: {gamma: 3, n_ctx: 4}", "--method coop", "coop", 16),
        ("method: {name: coop, init: a photo of a}", "--method adu --method.n-ctx 4", "adu", 4),
    ],
)
def test_flags_go_over_a_files_method(file, flags, name, n_ctx, tmp_path):
    found = method(flags, tmp_path, file)
    assert (found.name, found.n_ctx) == (name, n_ctx)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--method magic", "method.name = 'magic': unknown method (known: "),
        ("--method coop --method.gamma 3", "command line: unknown field 'method.gamma' (known: "),
        ("--method coop --method.name adu", "command line: method = 'coop': but method.name = "),
    ],
)
def test_a_method_that_cannot_be_is_one_line(flags, says, tmp_path):
    with pytest.raises(UserError) as error:
        method(flags, tmp_path)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--train.epoch 3", "unknown flag '--train.epoch' (near it: --train.epochs, "),
        ("--method.gama=3", "unknown flag '--method.gama' (near it: --method.gamma, "),
        ("--zzz", "unknown flag '--zzz' (--help lists all)"),
        ("--train.hflip perhaps", "'perhaps' belongs to no flag (--help lists them)"),
        ("--train.epochs", "argument --train.epochs/--epochs: expected one argument"),
    ],
)
def test_a_flag_that_is_not_there_is_one_line(flags, says, capsys):
    arguments = ["--forget", "sketch", *flags.split()]
    assert run_command(TrainCommandConfig, no_body, SHORTCUTS, arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: command line: {says}")
    assert err.count("\n") == 1


def no_body(_):
    raise AssertionError("it began all the same")


ODD_DOMAINS = [
    *(
        "[photo]",
        "[/x]",
        "[1]",
        '"quoted"',
        "it's",
        "50%",
        "{a}",
        "a b",
        " a",
        "写真",
        "null",
        "1.5",
    ),
    *("true", "a=b", ":car:", "..", "../x", "x" * 300, "$(x)", "*", "a:b"),
]


@pytest.mark.parametrize("name", ODD_DOMAINS)
@pytest.mark.parametrize("flag", [("--forget", "{}"), ("--forget={}",)])
def test_any_domain_can_be_named_in_a_flag(name, flag):
    arguments = [part.format(name) for part in flag]
    assert load_config(TrainCommandConfig, SHORTCUTS, arguments).forget == (name,)
    arguments = [part.format(f"sketch,{name}") for part in flag]
    assert load_config(TrainCommandConfig, SHORTCUTS, arguments).forget == ("sketch", name)


@pytest.mark.parametrize("name", ["[photo]", '"quoted"', "50%", "写真", "a b"])
def test_forget_sets_of_odd_names_stay_apart(name):
    arguments = ["--config", str(DEFAULT_CONFIG), "--forget", name, "--forget", f"a,{name}"]
    sets = load_config(SearchConfig, SEARCH_SHORTCUTS, arguments).forget
    assert sets == ((name,), ("a", name))


def test_a_forget_set_may_be_given_in_several_flags():
    arguments = ["--forget", "a", "--forget", "b,[c]"]
    assert load_config(TrainCommandConfig, SHORTCUTS, arguments).forget == ("a", "b", "[c]")


def test_commas_part_domains_unless_escaped():
    flags = ["--config", str(DEFAULT_CONFIG), "--forget", r"a,b\,c", r"--forget=d\+e,f\\,g"]
    sets = load_config(SearchConfig, SEARCH_SHORTCUTS, flags).forget
    assert sets == (("a", "b,c"), ("d+e", "f\\", "g"))


def test_unseen_domains_and_places_may_hold_anything_too():
    arguments = ["--forget", "a", "--context.data.unseen-domains", r"[x],b\,c"]
    arguments += ["--context.data.allow-uri", "s3://b/x,y[z]", "--context.data.allow-uri=/data"]
    data = load_config(TrainCommandConfig, SHORTCUTS, arguments).context.data
    assert data.unseen_domains == ("[x]", "b,c")
    assert data.allow_uri == ("s3://b/x,y[z]", "/data")


def config_file(tmp_path, content):
    file = tmp_path / "file.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_file_in_any_encoding_that_declares_itself_is_read(tmp_path, encoding):
    file = config_file(tmp_path, "forget: [写真]".encode(encoding))
    assert read_yaml(file) == {"forget": ["写真"]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("forget: [Gem\xe4lde]".encode("latin-1"), "line 1: byte 0xe4 is not UTF-8"),
        ("forget: [写真]".encode("utf-16-le"), "is not UTF-8"),
        (b"\xff\xfea", "is not UTF-16"),
        ("a: b\x00", "holds a zero byte"),
        ("a: [", "not YAML"),
        ("a: 2026-99-99", "not YAML: month must be in 1..12"),
        ("a: !!bool x", "not YAML"),
        ("a: !!int 'x'", "not YAML"),
        ("a: !!timestamp x", "not YAML"),
        ("a: " + "9" * 5000, "not YAML"),
        ("[" * 3000, "not YAML"),
        ("a: !!python/object/apply:os.getcwd []", "not YAML"),
        ("? [a]\n: b", "not YAML"),
        ("shots: 1\nshots: 2", "not YAML: the key 'shots' stands there 2 times"),
        ("a: {b: 1, b: 2}", "not YAML: the key 'b' stands there 2 times"),
        ("- a", "holds a list, not a mapping"),
        ("", "holds a NoneType, not a mapping"),
    ],
)
def test_a_file_that_is_no_mapping_in_yaml_is_one_line(tmp_path, content, says):
    with pytest.raises(UserError) as error:
        read_yaml(config_file(tmp_path, content))
    assert says in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_a_folder_or_a_missing_file_is_one_line(tmp_path):
    for path, says in ((tmp_path, "Is a directory"), (tmp_path / "no.yaml", "No such file")):
        with pytest.raises(UserError, match=says):
            read_yaml(path)


def test_an_error_is_one_line_whatever_names_it_holds(capsys):
    def body(_):
        raise UserError("domain 'new\nline \x1b[31m [x] caf\udce9': unknown")

    assert run_command(TrainCommandConfig, body, SHORTCUTS, ["--forget", "a"]) == 2
    err = capsys.readouterr().err
    assert err == "error: domain 'new\\nline \\x1b[31m [x] caf\\udce9': unknown\n"
