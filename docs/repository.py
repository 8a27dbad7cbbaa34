"""
Pages that the repository has already: README.md is the front page, and what it links to comes along, and so on. Files
keep their places, so that all links hold on both sides; links to whole folders become plain text.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
START = ["README.md", "CHANGELOG.md", "zoo/README.md"]
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)#]*)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """
    :param files: files of the pages' folder
    :param config: configuration
    :return: with those of the repository
    """
    wanted = [path for path in START if (ROOT / path).is_file()]
    for file in list(files.documentation_pages()):
        wanted += linked(file.src_uri, file.content_string)
    for path in wanted:  # grows meanwhile
        if files.get_file_from_path(path) is None and (ROOT / path).is_file():
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
            wanted += linked(path, (ROOT / path).read_text()) if path.endswith(".md") else []
    return files


def linked(path: str, text: str) -> list[str]:
    """
    :param path: page
    :param text: its content
    :return: paths within the repository that it links to
    """
    targets = [(ROOT / path).parent.joinpath(target).resolve() for _, _, target, _ in LINK.findall(text)]
    return [target.relative_to(ROOT).as_posix() for target in targets if target.is_relative_to(ROOT)]


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """
    :param markdown: text of a page
    :param page: the page
    :param config: configuration
    :param files: all files
    :return: text without links to folders
    """
    folder = (ROOT / page.file.src_uri).parent
    return LINK.sub(lambda link: link[2] if (folder / link[3]).is_dir() else link[0], markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """
    :param html: page
    :param page: the page
    :param config: configuration
    :param files: all files
    :return: page without the roles of docstrings
    """
    return re.sub(r":(class|meth|func):(?=<code>)", "", html)
