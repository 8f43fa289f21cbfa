"""IBP reduction: express Feynman integrals through master integrals. The rooms from the ground up; each knows only those above it here.

words

    errors            errors: one root, one line for the user
    console           what a person sees of a run: lines, progress, times, and the files that it leaves; tables, and figures where …
    shipped           what comes with the program: rules, weights, published figures, families; each a real file on disk
    run_directory     the files that a run keeps in its work directory

numbers

    tables            sorted tables of keys, arrays of int64 or of Python integers: runs, membership, sums by key
    elimination       sparse elimination modulo a prime; a row is a dictionary {column: value} without zeros
    residues          prime moduli, and arithmetic in arrays of residues: modulo one prime, or one for each of many points; null vectors
    arithmetic        numbers and arithmetic written as text, read token by token without executing anything
    polynomials       polynomials modulo a prime: in one variable as arrays of coefficients, in several as dictionaries or keys
    functions         rational functions as factors and numerators, and their text: `ExactFunction`, whose factors a reconstruction …

physics

    families          integral families: what defines one, and the files it is read from
    identities        IBP and LI identities derived from the propagators, exactly, then put at a numerical point
    sectors           sectors, the order of integrals, and integrals packed into numbers
    geometry          the geometry of a family: propagators as quadratic forms of the momenta, U and F, and which permutations of lines …
    symmetries        shifts of momenta that make sectors equivalent: guessed by U and F, proved by substitution
    masters           reductions rewritten: fewer masters by relations between them, and others that somebody prefers
    targets           what is to be reduced, as values and as text: integrals, linear combinations, and what a person asks for

rules

    rules             what a rule is, where rules are looked for, and what one makes of many integrals at once
    discovery         local elimination around one integral finds the rows that reduce it
    knowledge         what is known of a family at any point, and of its one-step results at one: `Knowledge`, by sector `SectorKnowledge`

search

    positions         the other way to a rule: identities taken one by one, each eliminating the heaviest integral left
    policy            A small set network that says which identity to take next, and what it sees of a position
    guide             A small network that says which rows local elimination tries first; numpy alone, no torch
    weights           the file of weights that a training leaves and that searches read
    helpers           helper processes, which share the work of a task that has several processors, and what they are given once for …
    beam              beam search: several ways to a rule followed at once
    training_data     the examples that policy and guide learn from, in a file that is checked when it is read
    training          how policy and guide are trained: losses and measures, epochs, checkpoint, weights file, curve

reduction

    sector_tasks      what a task of one sector is given and returns: `SectorTask`, `SectorResult`, and the tables in them, `Terms` and …
    problems          what is to be reduced where, and what came out: `Problem` and `Outcome`
    sector_work       one sector at its point: rules replayed on waves of its integrals
    one_step          one-step results of the integrals of a sector, and the three ways to a rule that gives them
    carrying          coefficients carried down one-step results, from heavy integrals to light ones and from sectors to their subsectors
    sector_reduction  one sector: a linear combination of its integrals reduced to masters and subsectors
    master_search     the masters of a sector, integrals that nothing reduces, and what maps of the sector into itself say about them
    store             what is known of families, on disk and shared by programs: `Store`
    journal           what a run has finished, in one file that only grows: `Journal`; `read_record` reads one without a claim on it
    run_state         a run at work: what it knows, what it has before it reduces anything, and what it counts, for its controller …
    steps             one-step tasks: batches of integrals for any executor, how they are cut to size, and what a closure under …
    status            what a run's files say of it: status.json, written by `Monitor` while one-step tasks run, and the tables that …
    sector_scheme     sectors from the top down, each as one task once all sectors above it are done
    step_scheme       one-step results of integrals as tasks, in batches, with no barrier between sectors or levels; a later controller …
    controller        A run from its problem to its outcome, whatever scheme distributes its work
    cuts              reductions on cuts, which keep only integrals with the cut lines, and their union; a cut is the bit mask of its lines
    joint_families    several families in one result: masters of a later one through those of earlier ones, where sectors are the same
    runs              how a problem is run in a work directory: by sectors, or by one-step tasks that a later run can go on with; how …

exact

    trace             a reduction recorded once, as array operations, and replayed at many primes and points: `probe`
    sector_traces     sectors of a trace, made of what their rules came to at the point where a reduction is recorded
    recording         recording a reduction at one point, and what further points need of that
    samples           values at sample points: what is asked for, how it travels from a task, and asking at random points
    letters           letters: factors that mix variables and may be known beforehand, from the kinematics of a family or from other …
    lifting           rational numbers from residues modulo one prime after another, until they predict the next prime or are confirmed …
    shapes            the shapes of rational functions: degrees, and the factors that lines through random points show
    reconstruction    rational functions of some variables from their values modulo primes, at points that are asked for
    sampler           coefficients from their values at sample points: by tasks, and from the journal of an earlier run
    exact             reductions with rational numbers or functions as coefficients, and what these are at sample points
    differential      differential equations: derivatives of the masters through the masters, and their values in other dimensions
    systems           homogeneous linear systems of a file: solved modulo a prime, or exactly from solutions at sample points
    benchmarks        how long searches take, and the evaluation of a recorded reduction

results

    certificates      certificates: results with the identities that prove them, and a verification that derives everything anew
    paths             what beam searches found, as a file that can be checked by itself: `write_paths` and `replay_paths`
    records           results as records of builtin types, which the pickle holds, and as the lines that a person sees at the end
    coefficients      coefficients of results as texts of rational functions: which names they have, and their expansion around a dimension
    exports           results in the formats of other programs, and back
    verification      results read back, and verified by reducing them anew with certificates, at random points
    kira_families     families of a Kira project: integralfamilies.yaml and kinematics.yaml
    kira              what a Kira project wants: jobs.yaml, its lists and ranges, for the families of `kira_families`
    catalogue         families as a person reads them: the list of what is built in, and one family with its sectors, masters and symmetries
    published         the published integrals against the published figures: every one by a process of its own, then all in one
    bundle            the whole program as one file that runs: a zip archive with the programs, their rooms and data, behind a line for …
    reductions        reductions from a problem to written results: modulo a prime, on cuts, of several families, or exactly by points

face

    interface         what scripts import: `from ibp_reduce import reduce, Family, …`; every name here is public and stays
    options           the options of every command of ibp_reduce.py, and what they are for the rooms
"""
