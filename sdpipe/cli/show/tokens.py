"""`sdpipe show tokens`: the words of a prompt as tokens."""

from sdpipe.cli import console, options
from sdpipe.cli.fallback import default_model
from sdpipe.cli.groups import embeddings, grouped
from sdpipe.cli.show.options import OutputOptions, Prompt
from sdpipe.loading.locate import chosen_model
from sdpipe.loading.textual_inversion import Embedding
from sdpipe.prompt.habits import warn_habits, warn_unused_words
from sdpipe.settings import Settings


@grouped
def tokens(
    prompt: Prompt,
    model: options.Model = None,
    embedding: options.EmbeddingFiles = None,
    *,
    output: OutputOptions,
    debug: options.Debug = False,
) -> None:
    """Draws the tokens that the text encoder reads from a prompt."""
    Settings(prompt=options.text("the prompt", prompt))
    drawing = output.check("tokens", prompt)
    inversions = [Embedding.read(given) for given in embeddings(embedding)]
    from sdpipe.loading.parts import load_tokenizer
    from sdpipe.loading.vocabulary import find_vocabulary
    from sdpipe.show.tokens import tokens_data, tokens_figure

    model = default_model(model, "tokenizer")
    tokenizer = load_tokenizer(model, inversions)
    name = model or chosen_model()
    if name is not None and (vocabulary := find_vocabulary(name)) is not None:
        prompt = vocabulary.read(prompt)
    warn_habits([prompt], tokenizer.added_tokens_encoder)
    warn_unused_words([inversion.word for inversion in inversions], [prompt])
    data = tokens_data(tokenizer, prompt)
    console.print_result(drawing.finish(data.to_dict(), lambda: tokens_figure(data)))
