"""Words that the guards know, English and Spanish, all lower case and without accents."""

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _pairs(text: str, mark: str) -> list[tuple[str, str]]:
    return [(one, other) for one, _, other in (pair.partition(mark) for pair in text.split())]


LIGHT = {
    "en": _words(
        """a able about actually already also although am an and any anything are as at basically be because been being
        but by can could currently dear did do does doing done even ever exactly explain for get getting go
        going gone gonna got gotten had has have having he hello help her hey hi him his how i id if im in
        into is it its ive just kindly know let like madam made make making may maybe me might mine must my
        need now of oh ok okay on one ones onto or our over own please possible possibly question quite really
        shall she should simply since sir so some something step steps still tell than thank thanks that
        that's the their them then there these they thing things this those though to too us very wanna want
        was way ways we well went were what whats when where which while who whom whose why will with wonder
        wondering would you your yours"""
    ),
    "es": _words(
        """a actualmente ahi ahora al algo algun alguna alguno alli aquel aquella aqui aun ayuda ayudar ayudarme bien
        buenas buenos como con cosa cosas cual cuales cuando cuanta cuantas cuanto cuantos de debe deberia
        debo decir decirme del dias dime donde e el en entonces era eres es esa esas ese eso esos esta estaba
        estado estan estar estas este esto estos estoy exactamente explicar explicarme favor forma fue gracias
        gustaria ha haber habia hace hacen hacer haga hago han has hay he hecho hemos hola ir la las le les lo
        los manera me mi mia mio mis misma mismo modo muy necesita necesitar necesito noches nos nosotros
        nuestra nuestro o oiga para pasos pero podemos poder podria podrias por porque posible pudo puede
        pueden puedes puedo pues que querer quien quienes quiere quieren quiero quisiera sabe saber sabes se
        ser si sido solamente somos son soy su sus tambien tan tardes te tener tengo tenia ti tiene tienen
        todavia tu tus u un una unas uno unos usted ustedes va vamos van vas voy y ya yo"""
    ),
}
"""Words that carry no content of a question: articles, pronouns, auxiliaries, courtesy. None may change an answer.

"before", "only", "every", "without", "first", "again" and their like are content on purpose.
"""

VAGUE = _words(
    """again ago algo amount amounts ano anos answer antes anything apply ayer back bad barata barato baratos best better
    bien big both cambia cambiar cara caro cheap cheaper cheapest check claro clear come continue corto cosa cosas cost
    costs cuenta cuentame cuesta cuestan cuesto dato datos day days deadline despues detail details detalle detalles dia
    dias diferencia difference different dinero do documento documentos documents doesn domingo dont dos ejemplo else
    enlace entender entiendo every everything example examples expensive explain explica explicame explicas facil fecha
    fee fees fine first forma free friday friend funciona funcionan funcionar good gracias gratis gratuito great hace
    hacerlo hello help horas hour hours hoy idea igual important importante importe info informacion information internet
    isn job jueves kind largo last later less limit limite linea link list lista long longer lunes made mal malo manana
    manera many martes mas matter mean means meant mejor mejores menos mention mes meses metodo miercoles minute minutes
    monday money month months more most much mucho nada need new nice none nothing nuevo number numero ocurre ok old
    online only opcion opciones option options order other otra otro pagar part parte pasa paso pasos pay pedido peor
    plazo please point precio pregunta price probado probar problem problema question quick quickly rapido razon read
    reason repeat repetir requirement requirements requisito requisitos respuesta right sabado same saturday second see
    seguro semana semanas sencillo send short shorter significa simple sirve smaller start step steps stop sucede sunday
    sure tarda tardan tarde terms thing things three thursday tiempo time tipo today todo tomorrow tone total tres tried
    try tuesday two type understand usa usar use vale veces verdad vez viernes way wednesday week weeks well what work
    works worse wrong year years yesterday yet"""
)
"""Words of content that say little of what is meant: a message of these alone leans on what was said before it."""

LANGUAGE_MARKS = {
    "en": _words(
        """about after against age all allowed already am an and another any apply are around as at available away back be
        because been before being best better between big book both but buy by can cannot cant change cheap check child claim
        cost could date day days did didn difference do does doesn doing don done dont down during each early eight either
        else every fee fees five for four free from get getting give gone got had have having hello help her here hi him
        his hour hours how i id if ill im in into is isn it its ive just keep last late left length less let like limit
        list long lost made make many may mean meaning means might month months more most much must my need needs never new
        next nine nobody not now of off old on one only open or order other our out over own pay per please price prices rate
        rates refund return rule safe same seven should since six small so some start still such take tax ten than thank
        thanks that thats the their them then there these they this those three through time times to today too two under
        until up us use used using want was wasn way we week weeks went were what whats when where whether which while who
        whom whose why will with within without won words work wrong year years yes yet you your yours zero"""
    ),
    "es": _words(
        """aca acaso ahi ahora al algo algun alguna alguno alla alli ano anos ante antes aparece aparte apenas aquel aquella aqui
        asi aun aunque ayer ayuda bajo bien buena buenas bueno buenos cada casi cerca cobra cobran como con conmigo contra
        cosa cual cuales cualquier cuando cuanta cuantas cuanto cuantos cuesta cuya cuyo da dan dar de debe deben debo del
        demas desde despues dia dias dice dicen digo dio dolor donde dos durante el ella ellas ellos en entonces entre eres
        esa esas ese eso esos esta estaba estamos estan estar estas este esto estos estoy fecha frente fue fueron funciona
        gente gracias gran gusta ha haber habia hablar hace hacen hacer hacia haga hago han hasta hay hice hija hijo hizo hola
        hora horas hoy ir jamas junto la las le lejos les ley llega llego llevo lo los luego luz mas mayor mejor menor menos
        mes meses meta mi mia mio mis misma mismo mucha mucho muchos mujer muy nada nadie ni ningun ninguna nino ninos nos
        nosotros nuestra nuestro nueva nuevo nunca o otra otras otro otros para parte pasa pasar pero pide piden pido poca
        poco podemos poder podria por porque precio pregunta pronto puede pueden puedes puedo pues puse que quien quienes
        quiere quiero quisiera quita quitar saber sale se segun seis ser si sido siempre significa sigue sin sino sirve sobre
        sois solo somos soy su sus tal tambien tampoco tan tanto tarda tasa te tener tengo ti tiempo tiene tienen tipo toda
        todas todavia todo todos traduccion tras tres tu tus un una unas uno unos usted ustedes va vale vamos van vas veces
        ver vez vi vos voy ya yo"""
    ),
}
"""Words that give a language away. Those that both languages write are in neither list: "a", "no", "me", "he", "has", "son"."""

LANGUAGE_NEUTRAL = _words(
    """a actor actual admin adsl alcohol altar alumni amazon android animal api app apple area auto bar bcn bizum blog bonus
    branch bus canal capital cash casual central cereal chat chown clip clips club co cognac color come commit compatible
    control cookies cultural data debate df dict digital dime director doctor docx dollar drama e ee electoral email era
    error eur euro euros excel extra facebook factor familiar fatal federal festival film final first fiscal formal formula
    ftth full galaxy gb general genial git global gmail google gps gym hardware has he historia hobby horror hospital hostal
    hotel http https iban idea ideal instagram int internet iphone join json kg kilos km legal liberal link linux local login
    macos mad manual marketing material mb me media mental menu merge metro mineral mobil moral motor movie municipal musical
    mysql natural netflix neutral no normal null office offline online oral original pan parking particular pasta paypal pdf
    personal photos piano pie pin pizza plan plaza plural popular post postgres principal puk push python radical radio real
    red regular remote reset ritual roaming router rural samsung set sexual show sim similar singular sl sms social
    software solar son spam spotify sql standard stash steam stock stop str streaming superior switch systemd taxi test tests
    total tram tutor tv twitter txt union usa usd usual uu verbal versus video videos virtual visa visual vital vocal vs web
    whatsapp wifi windows word www x xlsx youtube z"""
)
"""Words, names and loans of both languages: their letters say nothing of the text around them."""

LANGUAGE_LETTERS = (
    # Spanish: letters and endings that English hardly has.
    (3, r"^ree[mnls]|[aeiou]cion(?:es)?$|siones$|mente$|[aei]dad(?:es)?$|[ae]ncias?$|[ai]miento|[ai]d[ao]s?$"),
    (
        2,
        r"[aei]ndo(?:me|lo|la|se|te)?$|(?:ar|er|ir)(?:me|se|lo|la|le|te|los|las|les|nos)$|[^aeiou](?:uel|uen|uer|ien(?!ts?$)|ier)",
    ),
    (
        2,
        r"[bcdfghjklmnpqrstvxz]os$|[bcdfghjlmnprtvxz]o$|[bcdfghjlmnprtvxz]as?$|[aeiou][iu]?ll[ao]|rr[aeiou]|qu[ei](?!t|r|e|c|z)",
    ),
    (1, r"[bcdfgjlmnprtvz][ai]r$|^es[pqtc]|^des|j[aou]|aje$|ez$|[aeiou]n$|z[ao]s?$|[lrnt]es$|ue[snl]|ie[nr]|[nlrd]e$"),
    # English: letters and endings that Spanish hardly has.
    (-3, r"th|sh|wh|ck|gh|[a-z]w|^w[aehior]|k[es]|ing$|tions?$|ght|oo|ee[a-z]|ough|ness$|less$|ful$|ly$"),
    (-2, r"ss|ff|tt|pp|mm|dd|bb|gg|zz|k|ph|ou|ea[a-z]|oa|ow|aw|ew|[aeo]y|[bcdfghklmnprtvxz]y$|^y[aeo]u|ss$"),
    (-2, r"^s[bcdfgklmnpqtvw]|[bcdfghjkmpqtvwx]$|[bcdfghjklmnpqrtvwx]s$|n[dtkgc]$|[lr][dtmpfb]$|[sc]t$|ments?$"),
    (-1, r"ed$|ers?$|[eo]r$|age$|[aeiou][bcdfgklmnprstvz]e$|[ai]ble$|[cdlmnrt]ate$|[ct]le$|ie[sd]$|nce$|y[a-z]"),
)
"""What a pattern of letters in a word of at least three says, above 0 for Spanish and below for English; without accents."""

PHRASES = {
    "en": (
        ("log sign", r"\blog(?:ging)? ?(?:in|on)\b(?: to)?|\bsign(?:ing)? in\b|\blogin\b", "login"),
        ("log sign", r"\blog(?:ging)? ?out\b|\bsign(?:ing)? out\b|\blogoff\b", "logout"),
        ("sign regist enrol", r"\bsign(?:ing)?[ -]?up\b|\bregist(?:er|ering|ration)\b|\benrol(?:l|ling)?\b", "signup"),
        ("set", r"\bset(?:ting)?[ -]?up\b", "setup"),
        ("turn switch put", r"\b(?:turn|switch|put)(?:ing|ed)? ((?:\w+ ){0,3}?)(off|on|up|down)\b", r"turn\2 \1"),
        ("know", r"\bi (?:do not|dont) know (how|where|when|what|why|which|who|if)\b", r"\1"),
        ("mail", r"\be-?mails?(?: address)?\b", "email"),
        ("phone", r"\b(?:cell|mobile) ?phones?\b|\bcellphones?\b|\bsmart ?phones?\b", "mobile"),
        ("phone", r"\b(?:phone|telephone)(?: number)?s?\b", "phone"),
        ("power blackout", r"\bpower (?:cut|outage|failure)s?\b|\bblackouts?\b", "outage"),
        ("call", r"\bcall(?:ing|ed)? (?:(?:it|this|that) )?off\b", "cancel"),
        ("send", r"\bsend(?:ing)? (it|this|that|them) back\b", r"return \1"),
        ("money", r"\b(?:send|give|get|got|getting|have) (?:my |the )?money back\b|\bmoney back\b", "refund"),
        ("rid of", r"\bget rid of\b", "remove"),
        ("fill", r"\bfill(?:ed|ing)? (?:in|out)\b", "complete"),
        ("top", r"\btop(?:ping|ped)?[ -]?ups?\b", "topup"),
        ("pin", r"\bpin (?:number|code)s?\b", "pin"),
        ("zip post", r"\bzip ?codes?\b|\bpost ?codes?\b|\bpostal codes?\b", "postcode"),
        (
            "soon asap right immediately",
            r"\bas soon as possible\b|\basap\b|\bright (?:now|away)\b|\bimmediately\b",
            "now",
        ),
        (
            "moment chance order course come",
            r"\bat the moment\b|\bby any chance\b|\bin order to\b|\bof course\b|\bhow come\b",
            " ",
        ),
        ("far", r"\bhow far\b", "howfar"),
        ("quarter", r"\bthree quarters of an hour\b", "45 minutes"),
        ("quarter", r"\b(?:a )?quarter of an hour\b", "15 minutes"),
        ("longer more", r"\bno longer\b|\bnot any ?more\b", "not anymore"),
        ("down", r"\bgo(?:es|ing)? down\b", "decrease"),
        ("up", r"\bgo(?:es|ing)? up\b", "increase"),
        ("check", r"\bcheck(?:ing)? ?in\b", "checkin"),
        ("check", r"\bcheck(?:ing)? ?out\b", "checkout"),
        ("mov", r"\b(?:move|moving|moved) in\b", "movein"),
        ("mov", r"\b(?:move|moving|moved) out\b", "moveout"),
        ("opt", r"\bopt(?:ing|ed)? in\b", "subscribe"),
        ("opt", r"\bopt(?:ing|ed)? out\b", "unsubscribe"),
    ),
    "es": (
        ("alta", r"\b(?:d(?:ar|arme|oy|a|amos|arse|arnos)) de alta\b", "alta"),
        ("baja", r"\b(?:d(?:ar|arme|oy|a|amos|arse|arnos)) de baja\b", "baja"),
        ("correo mail", r"\bcorreos? electronicos?\b|\be-?mails?\b|\bmails?\b", "correo"),
        ("movil celular", r"\b(?:telefonos? moviles?|telefono movil|celular(?:es)?|moviles)\b", "movil"),
        ("telefono", r"\b(?:numeros? de )?telefonos?\b", "telefono"),
        ("postal", r"\bcodigos? postal(?:es)?\b", "codigopostal"),
        (
            "traves medio antes verdad cierto",
            r"\ba traves de\b|\bpor medio de\b|\blo antes posible\b|\bcuanto antes\b|\bde verdad\b|\bpor cierto\b",
            " ",
        ),
        ("cuarto", r"\btres cuartos de hora\b", "45 minutos"),
        ("cuarto", r"\b(?:una )?hora y cuarto\b", "75 minutos"),
        ("cuarto", r"\b(?:un )?cuarto de hora\b", "15 minutos"),
        ("debe", r"\ba que se debe\b", "por que"),
        ("no se", r"\bno se (como|donde|cuando|que|cual|quien|si)\b", r"\1"),
        (
            "sesion cuenta",
            r"\biniciar sesion\b|\binicio(?: de)? sesion\b|\bentrar en mi cuenta\b|\bacceder a mi cuenta\b",
            "login",
        ),
        ("sesion", r"\bcerrar sesion\b|\bcierro sesion\b", "logout"),
        (
            "falta hay que teng tenemos tiene",
            r"\bhace falta\b|\bhay que\b|\btengo que\b|\btenemos que\b|\btiene que\b",
            "debo",
        ),
        ("corte apagon", r"\bcortes? de (?:luz|electricidad)\b|\bapagon(?:es)?\b", "apagon"),
    ),
}
"""Turns of phrase and the one word that stands for them, on text without accents. First come strings of which one must
occur, so that most patterns need not be tried."""

_CLASSES = {
    "en": """cancel annul
        buy purchase acquire
        refund reimburse
        remove delete erase
        change update modify edit alter switch amend
        view see check look consult
        parcel package
        send submit
        begin start commence
        turnon activate
        turnoff deactivate
        choose select pick
        broken damaged
        function work
        cost price
        car automobile
        movie film
        photo picture image
        fast quick
        child kid
        repair fix mend
        reply answer respond
        purchase buy
        trip journey
        spouse partner
        shop store
        webpage website site
        error problem issue trouble
        obtain receive
        permit allow
        anymore longer
        happen occur
        big large
        recover retrieve restore
        mobile cell
        document paper
        pc computer laptop""",
    "es": """cancelar anular
        comprar adquirir
        borrar eliminar suprimir quitar
        cambiar modificar actualizar editar
        ver consultar mirar revisar
        enviar mandar remitir
        comenzar empezar iniciar
        elegir escoger seleccionar
        roto danado estropeado
        contrasena clave password
        luz electricidad
        ordenador computadora computador
        coche carro auto automovil
        movil celular
        arreglar reparar
        responder contestar
        tienda comercio
        web pagina sitio
        error problema fallo
        reembolso reintegro
        obtener conseguir
        permitir dejar
        pelicula film
        foto fotografia imagen
        rapido veloz
        cobrar cargar
        articulo producto
        direccion domicilio
        pedido orden
        factura facturas
        suscripcion abono""",
}

_ANTONYMS = {
    "en": _pairs(
        """increase/decrease raise/lower rise/fall higher/lower high/low more/less most/least before/after early/late
        earlier/later enable/disable activate/deactivate turnon/turnoff turnup/turndown up/down open/close
        opened/closed lock/unlock block/unblock add/remove buy/sell send/receive subscribe/unsubscribe
        subscribe/cancel start/stop begin/end first/last minimum/maximum min/max import/export upload/download
        deposit/withdraw credit/debit accept/reject accept/decline old/new cheap/expensive cheaper/dearer
        connect/disconnect install/uninstall upgrade/downgrade incoming/outgoing inbound/outbound
        domestic/international personal/business login/logout morning/evening morning/night day/night
        weekday/weekend today/tomorrow today/yesterday tomorrow/yesterday always/never fixed/variable
        free/paid join/leave hire/fire win/lose movein/moveout checkin/checkout borrow/lend pass/fail
        invoice/receipt public/private male/female inside/outside within/after pick/drop single/joint
        manual/automatic attach/detach follow/unfollow mute/unmute hide/show encrypt/decrypt include/exclude
        primary/secondary current/previous next/previous all/one all/only every/only many/few both/one
        ascend/descend approve/deny allow/deny gain/lose temporary/permanent active/inactive valid/invalid
        legal/illegal safe/unsafe online/offline left/right north/south east/west hot/cold love/hate good/bad
        best/worst heat/cool pull/push arrive/depart top/bottom long/short strong/weak""",
        "/",
    ),
    "es": _pairs(
        """aumentar/disminuir subir/bajar alto/bajo mas/menos mayor/menor antes/despues temprano/tarde activar/desactivar
        encender/apagar abrir/cerrar bloquear/desbloquear anadir/quitar comprar/vender enviar/recibir
        alta/baja empezar/terminar primero/ultimo minimo/maximo importar/exportar cargar/descargar
        subir/descargar ingresar/retirar credito/debito aceptar/rechazar nuevo/viejo nuevo/antiguo barato/caro
        conectar/desconectar instalar/desinstalar entrar/salir entrada/salida dia/noche hoy/manana hoy/ayer
        manana/ayer siempre/nunca fijo/variable gratis/pago prestar/pedir ganar/perder con/sin todos/solo
        todo/solo factura/recibo publico/privado nocturno/diurno plano/nocturno nacional/internacional
        interno/externo incluir/excluir activo/inactivo valido/invalido permitir/prohibir izquierda/derecha
        norte/sur este/oeste mejor/peor bueno/malo caliente/frio comprar/canjear temporal/permanente
        manual/automatico conceder/denegar prender/apagar meter/sacar llegar/salir""",
        "/",
    ),
}

NEGATIONS = _words(
    """cannot jamas nada nadie neither never ni ningun ninguna ninguno no nobody none nor not nothing nunca sin tampoco
    unable without"""
)

_NUMBERS = (
    (2, 1, "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"),
    (18, 1, "eighteen nineteen"),
    (20, 10, "twenty thirty forty fifty sixty seventy eighty ninety"),
    (2, 1, "dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciseis diecisiete"),
    (
        18,
        1,
        "dieciocho diecinueve veinte veintiuno veintidos veintitres veinticuatro veinticinco veintiseis veintisiete",
    ),
    (28, 1, "veintiocho veintinueve"),
    (30, 10, "treinta cuarenta cincuenta sesenta setenta ochenta noventa cien"),
    (
        100,
        100,
        "ciento doscientos trescientos cuatrocientos quinientos seiscientos setecientos ochocientos novecientos",
    ),
    (200, 100, "doscientas trescientas cuatrocientas quinientas seiscientas setecientas ochocientas novecientas"),
)
NUMBER_WORDS = {
    **{word: first + step * place for first, step, words in _NUMBERS for place, word in enumerate(words.split())},
    "veintiun": 21,
    "veintiuna": 21,
    "couple": 2,
}
MULTIPLIERS = {
    "hundred": 100,
    "cientos": 100,
    "thousand": 1_000,
    "mil": 1_000,
    "dozen": 12,
    "docena": 12,
    "docenas": 12,
    "million": 1_000_000,
    "millon": 1_000_000,
    "millones": 1_000_000,
    "billion": 1_000_000_000,
}
"""Number words that multiply what stands before them."""

ONE_WORDS = _words("a an one un una uno")
HALF_WORDS = _words("half medio media")
COUNTS = ONE_WORDS | HALF_WORDS | NUMBER_WORDS.keys() | MULTIPLIERS.keys()
ENGLISH_COUNTS = COUNTS - {"once"}
"""All words that may begin a number."""

_UNIT_WORDS = (
    ("seconds", 1.0, "second seconds sec secs segundo segundos"),
    ("seconds", 60.0, "minute minutes min mins minuto minutos"),
    ("seconds", 3_600.0, "hour hours hr hrs h hora horas"),
    ("seconds", 86_400.0, "day days dia dias"),
    ("seconds", 604_800.0, "week weeks semana semanas"),
    ("seconds", 1_209_600.0, "fortnight fortnights"),
    ("seconds", 1_296_000.0, "quincena quincenas"),
    ("months", 1.0, "month months mes meses"),
    ("months", 3.0, "quarter quarters trimestre trimestres"),
    ("months", 12.0, "year years yr yrs ano anos"),
    ("usd", 1.0, "dollar dollars usd bucks dolar dolares $"),
    ("eur", 1.0, "euro euros eur €"),
    ("gbp", 1.0, "pound pounds gbp quid libra libras £"),
    ("pesos", 1.0, "peso pesos mxn"),
    ("cents", 1.0, "cent cents centimo centimos centavo centavos"),
    ("percent", 1.0, "percent % ciento"),
    ("metres", 1_000.0, "km kilometer kilometers kilometre kilometres kilometro kilometros"),
    ("metres", 1_609.344, "mile miles milla millas"),
    ("metres", 0.01, "cm centimeter centimeters centimetre centimetres centimetro centimetros"),
    ("metres", 0.001, "mm"),
    ("metres", 1.0, "meter meters metre metres metro metros"),
    ("grams", 1_000.0, "kg kilo kilos kilogram kilograms kilogramo kilogramos"),
    ("grams", 1.0, "g gr gram grams gramo gramos"),
    ("grams", 0.001, "mg milligram milligrams miligramo miligramos"),
    ("litres", 1.0, "liter liters litre litres litro litros"),
    ("litres", 0.001, "ml millilitre millilitres milliliter milliliters mililitro mililitros"),
    ("kwh", 1.0, "kwh"),
    ("kw", 1.0, "kw"),
    ("mb", 1.0, "mb"),
    ("mb", 1_024.0, "gb"),
)
UNITS = {word: (base, size) for base, size, words in _UNIT_WORDS for word in words.split()}
"""Unit words, with the base unit that they are counted in and its number."""

WORKING_DAY = re.compile(r"^(?:working|business|laborable|laborables|habil|habiles)$")

_IRREGULAR = {
    "en": dict(
        _pairs(
            """paid:pay bought:buy sent:send took:take taken:take lost:lose forgot:forget forgotten:forget broke:broken
            stole:steal stolen:steal came:come found:find left:leave spent:spend wrote:write written:write
            chose:choose chosen:choose withdrew:withdraw withdrawn:withdraw sold:sell kept:keep held:hold
            won:win shown:show gave:give given:give began:begin begun:begin ran:run said:say told:tell
            met:meet brought:bring thought:think children:child people:person men:man women:woman
            better:better payment:pay delivery:deliver cancellation:cancel subscription:subscription
            activation:activate verification:verify verified:verify access:access address:address
            addresses:address business:business status:status news:news gas:gas bus:bus during:during
            morning:morning evening:evening nothing:nothing string:string thing:thing king:king
            setting:setting settings:setting meeting:meeting building:building bring:bring need:need
            speed:speed feed:feed red:red bed:bed shipping:ship shipped:ship shipment:ship""",
            ":",
        )
    ),
    "es": dict(
        _pairs(
            """cuesta:costar cuestan:costar coste:costar costo:costar devuelvo:devolver devuelve:devolver
            devuelven:devolver devuelvan:devolver devuelto:devolver enciendo:encender enciende:encender
            cierro:cerrar cierra:cerrar cierre:cerrar encuentro:encontrar encuentra:encontrar
            pierdo:perder pierde:perder perdi:perder muevo:mover empieza:empezar empiezo:empezar
            pido:solicitar pide:solicitar pedir:solicitar pedido:pedido pedidos:pedido consigo:conseguir
            vuelvo:volver vuelve:volver pago:pagar pagos:pagar pague:pagar pagado:pagar cobro:cobrar
            cobran:cobrar recibo:recibo recibos:recibo sigo:seguir sigue:seguir elijo:elegir elige:elegir
            escojo:escoger roto:roto rota:roto muestro:mostrar muestra:mostrar envio:enviar envios:enviar
            caso:caso casos:caso casa:casa casas:casa puerto:puerto puerta:puerta cargo:cargo cargos:cargo
            carga:carga cuenta:cuenta cuentas:cuenta banco:banco bancos:banco banca:banca plazo:plazo
            plazos:plazo plaza:plaza punto:punto puntos:punto medio:medio medios:medio libro:libro
            saldo:saldo salida:salida manana:manana nada:nada llega:llegar llego:llegar llegan:llegar
            dia:dia mes:mes meses:mes ano:ano gas:gas tres:tres solo:solo sola:solo""",
            ":",
        )
    ),
}


def irregular(word: str, language: str) -> str | None:
    """The base form of a word that the endings do not give away."""
    return _IRREGULAR[language].get(word)


def synonym_classes(language: str) -> list[list[str]]:
    """Groups of words that ask for the same thing."""
    return [line.split() for line in _CLASSES[language].splitlines()]


def antonym_pairs(language: str) -> list[tuple[str, str]]:
    """Words that turn an answer round."""
    return _ANTONYMS[language]
