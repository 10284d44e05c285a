"""Many cases over many workers: found, done once, recorded, and shown in one table and one page.

`segmamba.batch.cases` finds them. `segmamba.batch.run` has them done by workers of this computer
(`segmamba.batch.local`) or of a Dask cluster (`segmamba.batch.cluster`), each by `segmamba.batch.case`.
`segmamba.batch.table` and `segmamba.batch.overview` show the results.
"""
