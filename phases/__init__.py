"""Rooms of the explorer, in reading order.

Each knows only those above it, and of `executors/` only local ones; only explorer.py knows options and exit codes.

    errors            one root, one line for the user
    model             couplings, lattice, energy, the Luttinger-Tisza bound
    clusters          all magnetic unit cells of a lattice, side by side in one array
    annealer          heat bath on magnetic cells and the whole lattice, then T = 0 relaxation
    names             the names of phases
    reciprocal        sublattice-resolved structure factor, the places of a wave vector
    waves             peaks of a structure factor, their members, harmonics
    textures          topological charge and chirality
    classification    from spins to a name, with a margin at each decision
    ideal_states      what every name looks like
    box               parameters and their ranges, unit points
    surrogate         phase probabilities, a Gaussian-process classifier
    acquisition       where to simulate next: the table of strategies
    learner           ask and tell: the explorer core
    maps              the predicted phases of two parameters, and their boundaries
    history           append-only events, and the run that they amount to
    summaries         a run in words
    machine           processors, memory and files of this machine
    simulations       one point in a worker; points sent to an executor, and what comes back
    active_learning   the class that a script uses: points, batches, the loop
    pictures          of a run, with matplotlib
    report            one HTML page
    plan              box, lattice and simulation of an exploration
    benchmark         the figures asked for, and what is reached; sequential against parallel
"""
