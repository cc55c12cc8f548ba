"""A model on another machine: an OpenAI-compatible server behind the same ``Backend``.

``llavakit.load(model, base_url=...)`` gives a :class:`~llavakit.remote.client.RemoteBackend`.
Nothing here imports torch. From the bytes upwards: ``sse`` cuts a stream into events,
``answer`` makes chunks of them and checks what a server may have ignored, ``exchange`` runs
one request with its retries, ``loop`` is the thread on which all of them run, ``client`` is
the backend. ``dialects`` says how servers differ, ``messages`` how a conversation is written.
"""
