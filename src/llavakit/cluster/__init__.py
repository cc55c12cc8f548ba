"""Many models at once, on Ray: replicas of the server behind one address, and folders of documents.

``llavakit serve --ray`` is :mod:`~llavakit.cluster.deploy` behind :mod:`~llavakit.cluster.ingress`;
``llavakit read --ray`` is :mod:`~llavakit.cluster.batch`. Needs ``llavakit[ray]``.
"""
