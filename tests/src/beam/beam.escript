#!/usr/bin/env escript
%%! +sbwt none
%% A BEAM with `tether port` on it: says to it what comes on standard input, a term to a line, and prints what it says.

-mode(compile).

main([Tether]) ->
    process_flag(priority, high),
    Port = open_port({spawn_executable, Tether}, [{args, ["port"]}, {packet, 4}, binary, exit_status]),
    Self = self(),
    spawn_link(fun() -> hear(Self) end),
    loop(Port).

hear(To) ->
    case io:read('') of
        {ok, Term} -> To ! {say, Term}, hear(To);
        eof -> halt(0)
    end.

loop(Port) ->
    receive
        {say, {beats, Interval}} ->
            put(beats, spawn_opt(fun() -> beat(Port, Interval) end, [{priority, high}]));
        {say, still} ->
            %% What is written to a port that ends is its owner's end too.
            exit(get(beats), kill);
        {say, {measure, Times, Term}} ->
            tell([ask(Port, setelement(2, Term, element(2, Term) + N)) || N <- lists:seq(1, Times)]);
        {say, {measure_cat, Times, Size}} ->
            Cat = open_port({spawn_executable, "/bin/cat"}, [{packet, 4}, binary]),
            Bytes = binary:copy(<<0>>, Size),
            tell([return(Cat, Bytes) || _ <- lists:seq(1, Times)]),
            port_close(Cat);
        {say, {raw, Bytes}} ->
            port_command(Port, Bytes);
        {say, {hello, Hello}} ->
            port_command(Port, term_to_binary({hello, Hello#{beam => list_to_integer(os:getpid())}}));
        {say, Term} ->
            port_command(Port, term_to_binary(Term));
        {Port, {data, Bytes}} ->
            io:format("~0P~n", [binary_to_term(Bytes), 400]);
        {Port, {exit_status, Status}} ->
            io:format("{exit,~b}~n", [Status])
    end,
    loop(Port).

beat(Port, Interval) ->
    port_command(Port, term_to_binary({beat, 1})),
    timer:sleep(Interval),
    beat(Port, Interval).

%% From a term to its reply, in nanoseconds.
ask(Port, Term) ->
    Start = erlang:monotonic_time(nanosecond),
    port_command(Port, term_to_binary(Term)),
    await(Port, element(2, Term), Start).

await(Port, Id, Start) ->
    receive
        {Port, {data, Bytes}} ->
            case binary_to_term(Bytes) of
                {reply, Id, {ok, _}} -> erlang:monotonic_time(nanosecond) - Start;
                {reply, Id, Error} -> exit(Error);
                _ -> await(Port, Id, Start)
            end
    end.

%% What a port costs that only gives back what it is given.
return(Cat, Bytes) ->
    Start = erlang:monotonic_time(nanosecond),
    port_command(Cat, Bytes),
    receive {Cat, {data, Bytes}} -> erlang:monotonic_time(nanosecond) - Start end.

tell(Nanos) ->
    Sorted = lists:sort(Nanos),
    At = fun(Share) -> lists:nth(max(1, round(length(Sorted) * Share)), Sorted) end,
    io:format("{measured,~b,~b}~n", [At(0.5), At(0.99)]).
