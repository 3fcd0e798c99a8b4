"""`yolokd completion`: the shell's completion of verbs, their arguments and the names of methods.

The script holds all words, so that completing starts no Python. None of it imports torch: Ultralytics' arguments are
read from its default.yaml and the methods from the text of their table.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from yolokd.errors import UsageError
from yolokd.verbs import VERBS, load
from yolokd.verbs.declaration import Option, Verb, names_in_dict

LITERAL = re.compile(r"[a-z0-9_.]+=|(--)?[a-z-]+")  # typed as it stands, unlike NAME or base.json
VERB = Verb(
    summary="prints the shell's completion",
    usage=("yolokd completion bash|zsh",),
    options=(Option("bash", "for bash", bare=True), Option("zsh", "for zsh", bare=True)),
    examples=('eval "$(yolokd completion bash)"', 'eval "$(yolokd completion zsh)"'),
)

BASH = """\
_yolokd() {
  local line=${COMP_LINE:0:COMP_POINT} word words values=
  word=${line##*[[:space:]]}
  compopt +o nospace 2>/dev/null
  if [[ $COMP_CWORD -eq 1 ]]; then
    COMPREPLY=($(compgen -W "@VERBS@" -- "$word"))
    return
  fi
  case $word in
    method=*) values="@METHODS@" ;;
    methods=*) values="@METHODS@ builtin" ;;
    *=*) ;;
    *)
      case ${COMP_WORDS[1]} in
@CASES@
      esac
      COMPREPLY=($(compgen -W "$words" -- "$word") $(compgen -f -- "$word"))
      [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2>/dev/null
      return ;;
  esac
  local key=${word%%=*}= value=${word#*=} done=
  if [[ $values ]]; then
    [[ $value == *[,+]* ]] && done=${value%"${value##*[,+]}"}
    COMPREPLY=($(compgen -P "$done" -W "$values" -- "${value#"$done"}"))
    compopt -o nospace 2>/dev/null
  else
    COMPREPLY=($(compgen -f -- "$value"))
    compopt -o filenames 2>/dev/null
  fi
  if [[ $COMP_WORDBREAKS != *=* ]]; then
    COMPREPLY=("${COMPREPLY[@]/#/$key}")
  fi
}
complete -F _yolokd yolokd
"""

ZSH = """\
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
_yolokd() {
  local -a words_of
  if (( CURRENT == 2 )); then
    compadd -- @VERBS@
    return
  fi
  case $PREFIX in
    method=*|methods=*)
      local key=${PREFIX%%=*}
      compset -P '*[=,+]'
      compadd -S '' -- @METHODS@ ${${(M)key:#methods}:+builtin}
      return ;;
    *=*)
      compset -P '*='
      _files
      return ;;
  esac
  case $words[2] in
@CASES@
  esac
  compadd -S '' -- ${(M)words_of:#*=}
  compadd -- ${words_of:#*=}
  _files
}
compdef _yolokd yolokd
"""


def run(words: list[str]) -> None:
    """Print the script of a shell."""
    if words not in (["bash"], ["zsh"]):
        raise UsageError(f"completion is for bash or zsh and was given {' '.join(words) or 'none'}: name one of them.")
    print(script(words[0]), end="")


def script(shell: str) -> str:
    """The completion's script."""
    template, case = (BASH, '        {}) words="{}" ;;') if shell == "bash" else (ZSH, "    {}) words_of=({}) ;;")
    cases = "\n".join(case.format(name, " ".join(words)) for name in VERBS if (words := words_after(name)))
    methods, recipes = method_names()
    filled = template.replace("@VERBS@", " ".join(VERBS)).replace("@METHODS@", " ".join([*methods, *recipes]))
    return filled.replace("@CASES@", cases)


def words_after(name: str) -> list[str]:
    """What may follow a verb: `epochs=` and the like, or names."""
    if name == "help":
        return list(VERBS)
    verb: Verb = load(name).VERB
    spelled = [option.spelling.split()[0] for option in verb.all_options()]  # "--data-only DIR": without its value
    words = [word for word in spelled if LITERAL.fullmatch(word)]
    words += method_names()[0] if name == "methods" else []
    words += [f"{key}=" for key in ultralytics_keys()] if verb.passes_on else []
    return list(dict.fromkeys(words))


def method_names() -> tuple[list[str], list[str]]:
    """What `method=` may name: methods, and the recipes that come with the package."""
    spec = find_spec("yolokd_cfg")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = sorted(file for folder in folders for file in Path(folder).glob("*.yaml"))
    recipes = [f.stem for f in files if re.search(r"^(methods|pairs):", f.read_text(encoding="utf-8"), re.MULTILINE)]
    return names_in_dict("yolokd.methods", "METHODS"), recipes


def ultralytics_keys() -> list[str]:
    """Ultralytics' own arguments, from the file that has their defaults."""
    spec = find_spec("ultralytics")
    if spec is None or spec.origin is None:
        return []
    text = (Path(spec.origin).parent / "cfg" / "default.yaml").read_text(encoding="utf-8")
    return re.findall(r"^(\w+):", text, re.MULTILINE)
