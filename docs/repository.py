"""
Hook of mkdocs: README.md is the front page of the site, and every file that a page links to comes along. Links are
written as they hold in the repository and rewritten here to the built pages. README.md writes its links in full,
because PyPI shows it, too; those are treated alike. Relative links to whole folders become plain text.
"""

import os
import re
import shutil
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "pages"
PACKAGE = ROOT / "build" / "docs" / "sb3_mpc"  # where mkdocs.yml has mkdocstrings look for it
START = ["README.md", "CHANGELOG.md", "zoo/README.md"]
REPOSITORY = "sb3-mpc/sb3-mpc"  # on GitHub
ADDRESS = re.compile(
    rf"https://(?:github\.com/{REPOSITORY}/(?:blob|tree)|raw\.githubusercontent\.com/{REPOSITORY})/main/"
)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
ROLE = re.compile(r":(?:class|meth|func|mod|attr|data|exc):<code>(~?)([^<]*)</code>")


def on_startup(command: str, dirty: bool) -> None:
    """
    Lay out the package as it is installed: mkdocstrings reads files, and ``sb3_mpc.envs`` and ``sb3_mpc.zoo`` lie
    outside of ``sb3_mpc``. At the start, because mkdocstrings forgets folders that it does not find then.

    :param command: build or serve
    :param dirty: whether unchanged pages are kept
    """
    shutil.rmtree(PACKAGE, ignore_errors=True)
    for source, target in (("sb3_mpc", PACKAGE), ("envs", PACKAGE / "envs"), ("zoo", PACKAGE / "zoo")):
        for path in (ROOT / source).rglob("*.py"):
            copy = target / path.relative_to(ROOT / source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """
    :param files: files of the pages' folder
    :param config: configuration
    :return: with those of the repository
    """
    wanted = [ROOT / path for path in START]
    for page in PAGES.glob("*.md"):
        wanted += linked(page)
    for path in wanted:  # grows meanwhile
        if path.is_file() and files.get_file_from_path(place(path)) is None:
            files.append(File.generated(config, place(path), abs_src_path=str(path)))
            wanted += linked(path) if path.suffix == ".md" else []
    return files


def linked(page: Path) -> list[Path]:
    """
    :param page: file of the repository
    :return: what of the repository it links to
    """
    targets = [local(page, target) for _, _, target, _ in LINK.findall(page.read_text(encoding="utf-8"))]
    return [target for target in targets if target is not None and target.is_relative_to(ROOT)]


def local(page: Path, target: str) -> Path | None:
    """
    :param page: file of the repository
    :param target: where one of its links leads, without the heading
    :return: that path in this clone, ``None`` for other sites
    """
    if address := ADDRESS.match(target):
        return ROOT / target[address.end() :]
    return None if re.match(r"\w+:", target) else (page.parent / target).resolve()


def place(path: Path) -> str:
    """
    :param path: file of the repository
    :return: its path among the built pages
    """
    return path.relative_to(PAGES if path.is_relative_to(PAGES) else ROOT).as_posix()


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """
    :param markdown: text of a page
    :param page: the page
    :param config: configuration
    :param files: all files
    :return: text whose links lead to the built pages, without relative ones to folders
    """
    source = Path(page.file.abs_src_path or ROOT)

    def rewritten(link: re.Match[str]) -> str:
        target = local(source, link[3])
        if target is not None and target.is_dir():
            return link[0] if ADDRESS.match(link[3]) else link[2]
        if target is None or not target.is_file() or not target.is_relative_to(ROOT):
            return link[0]  # another site, or a wrong link, which mkdocs or the tests report
        there = os.path.relpath(place(target), os.path.dirname(place(source)) or ".").replace(os.sep, "/")
        return f"{link[1]}[{link[2]}]({there}{link[4] or ''})"

    return LINK.sub(rewritten, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """
    :param html: page
    :param page: the page
    :param config: configuration
    :param files: all files
    :return: page without the roles of docstrings; names that begin with ``~`` are cut to their last part
    """
    return ROLE.sub(lambda role: f"<code>{role[2].rpartition('.')[2] if role[1] else role[2]}</code>", html)
