#!/usr/bin/env escript
%% A BEAM with `tether port` on it: says to it what comes on standard input, a term to a line, and prints what it says.

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
            spawn_opt(fun() -> beat(Port, Interval) end, [link, {priority, high}]);
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
