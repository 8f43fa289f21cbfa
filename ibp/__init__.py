"""IBP reduction: Feynman integrals through master integrals. The rooms from the ground up; each knows only those above it here.

words

    errors            one root; what a person is told in one line
    console           what a person sees of a run: lines, progress, times, tables, pictures
    shipped           the files that come with the program: rules, weights, families
    run_directory     the files that a run keeps in its work directory

numbers

    tables            sorted tables of keys: runs, membership, sums by key
    elimination       sparse elimination modulo a prime; a row is {column: value}
    residues          primes, arithmetic modulo them in arrays, null vectors
    arithmetic        numbers and formulas written as text; nothing is executed
    polynomials       polynomials modulo a prime, in one variable and in several
    functions         rational functions as factors and numerators, and their text

physics

    families          what defines an integral family; the files it is read from
    identities        IBP and LI identities, derived exactly, then put at a point
    sectors           sectors, the order of integrals, integrals packed into numbers
    geometry          propagators as quadratic forms; U and F, and what keeps them
    symmetries        shifts of momenta between sectors, each proved by substitution
    masters           relations between masters, and a preferred basis
    targets           integrals and combinations to reduce, as values and as text

rules

    rules             what a rule is, where one is looked for, and its replay on many
    discovery         local elimination around one integral finds a rule
    knowledge         what is known of a family, sector by sector

search

    positions         the other way to a rule: one identity after the other
    policy            a network that says which identity comes next
    guide             a small network that orders the rows of local elimination
    weights           the file of weights
    helpers           processes that share the work of one task
    beam              beam search: several ways to a rule at once
    training_data     the examples that policy and guide learn from
    training          how policy and guide learn, and how they are measured

reduction

    sector_tasks      what a task of one sector is given, and what it returns
    problems          what is to be reduced where, and what came out
    sector_work       rules replayed on waves of a sector's integrals
    one_step          one-step results, and the three ways to a rule for them
    carrying          coefficients carried down one-step results
    sector_reduction  one sector, reduced to masters and subsectors
    master_search     which integrals nothing reduces
    store             what is known of families, on disk, shared by programs
    journal           what a run has finished, in a file that only grows
    run_state         what a run has before it begins, learns and counts
    steps             batches of integrals as tasks for any executor
    status            what a run's files say of it
    sector_scheme     sectors from the top down, each as one task
    step_scheme       one-step tasks without barriers, resumable
    controller        a run from its problem to its outcome
    cuts              reductions on cuts, and their union
    joint_families    several families in one result
    runs              how a problem is run in a work directory, and ended

exact

    trace             a reduction recorded once, replayed at many points
    sector_traces     the sectors of a recorded reduction
    recording         how a reduction is recorded
    samples           values at sample points: asking, and how they travel
    letters           factors of denominators that are known beforehand
    lifting           rational numbers from residues modulo several primes
    shapes            degrees of functions, and the factors that lines show
    reconstruction    rational functions from their values modulo primes
    sampler           values of coefficients by tasks and from a journal
    exact             reductions with functions as coefficients
    differential      derivatives of masters, and dimensional recurrences
    systems           linear systems of a file
    benchmarks        how long points and searches take

results

    certificates      results with the identities that prove them
    paths             the paths of beam searches, in a file that proves itself
    records           results as records of builtin types, and as lines for people
    coefficients      the names in coefficients, and their expansion
    exports           results for other programs, and back
    verification      results read back, and proved anew
    kira_families     families of a Kira project
    kira              what a Kira project wants
    catalogue         families as a person reads them
    published         the published integrals against the published figures
    bundle            the whole program as one file
    reductions        from a problem to written results

face

    interface         what scripts import from ibp_reduce
    options           the options of every command, and what they mean for the rooms
"""
